package host

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// pciTree is a host with a graphics card of two functions behind a bridge, and a network card.
func pciTree(t *testing.T) Root {
	t.Helper()
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	link := func(name, to string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	device := func(address, class, driver, group string) {
		dir := pciDevices + "/" + address
		write(dir+"/class", class+"\n")
		if driver != "" {
			link(dir+"/driver", "../../../bus/pci/drivers/"+driver)
		}
		if group != "" {
			link(dir+"/iommu_group", "../../../kernel/iommu_groups/"+group)
			link("/sys/kernel/iommu_groups/"+group+"/devices/"+address, "../../../../bus/pci/devices/"+address)
		}
	}
	device("0000:00:01.0", "0x060400", "pcieport", "7")
	device("0000:65:00.0", "0x030000", "vfio-pci", "7")
	device("0000:65:00.1", "0x040300", "snd_hda_intel", "7")
	device("0000:66:00.0", "0x020000", "e1000e", "")
	write(pciDevices+"/0000:65:00.0/resource", "0x00000000f6000000 0x00000000f6ffffff 0x0000000000040200\n"+
		"0x0000380000000000 0x00003807ffffffff 0x000000000014220c\n0x0000000000000000 0x0000000000000000 0x0\n"+
		"0x0000000000001000 0x00000000000fffff 0x0000000000040101\nnonsense\n")
	write(pciDevices+"/0000:65:00.0/vfio-dev/vfio3/dev", "511:3\n")
	write("/dev/vfio/devices/vfio3", "")
	return Root(root)
}

func TestPCI(t *testing.T) {
	r := pciTree(t)
	want := &PCIDevice{
		Address: "0000:65:00.0", There: true, Class: 0x030000, Driver: "vfio-pci", Group: 7, Node: "vfio3",
		Memory: 32 << 30,
		Mates: []PCIDevice{
			{Address: "0000:00:01.0", There: true, Class: 0x060400, Driver: "pcieport", Group: 7},
			{Address: "0000:65:00.1", There: true, Class: 0x040300, Driver: "snd_hda_intel", Group: 7},
		},
	}
	got := r.PCI("0000:65:00.0")
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if !got.Mates[0].IsBridge() || got.IsBridge() {
		t.Error("the wrong device is a bridge")
	}
	if !r.CanOpenVFIO(got) {
		t.Error("its node cannot be opened")
	}
	if d := r.PCI("0000:66:00.0"); !d.There || d.Group != -1 || d.Driver != "e1000e" || r.CanOpenVFIO(d) {
		t.Errorf("without an IOMMU: %+v", d)
	}
	if d := r.PCI("0000:99:00.0"); d.There || r.CanOpenVFIO(d) {
		t.Errorf("none: %+v", d)
	}
}
