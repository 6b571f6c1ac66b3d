package host

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// PCIDevice is a device of the host's, as sysfs shows it (Documentation/ABI/testing/sysfs-bus-pci).
type PCIDevice struct {
	Address string // 0000:65:00.0
	There   bool
	Class   uint32      // base class, subclass, interface
	Driver  string      // "" for none
	Group   int         // of the IOMMU; -1 for none
	Mates   []PCIDevice // the others of its group
	Node    string      // its device of VFIO under /dev/vfio/devices; "" if the kernel makes none
	Memory  uint64      // that its largest window takes of the guest's address space, in bytes
}

// IsBridge reports whether the device is a bridge, which stays with the host.
func (d *PCIDevice) IsBridge() bool { return d.Class>>16 == 0x06 }

const pciDevices = "/sys/bus/pci/devices"

// PCI looks at a device.
func (r Root) PCI(address string) *PCIDevice {
	d := r.pci(address)
	if d.Group < 0 {
		return d
	}
	group := filepath.Join("/sys/kernel/iommu_groups", strconv.Itoa(d.Group), "devices")
	entries, _ := os.ReadDir(r.path(group))
	for _, e := range entries {
		if e.Name() != address {
			d.Mates = append(d.Mates, *r.pci(e.Name()))
		}
	}
	return d
}

func (r Root) pci(address string) *PCIDevice {
	dir := filepath.Join(pciDevices, address)
	d := &PCIDevice{Address: address, There: r.exists(dir), Group: -1}
	if class, err := strconv.ParseUint(r.word(dir+"/class"), 0, 32); err == nil {
		d.Class = uint32(class)
	}
	d.Driver = r.linked(dir + "/driver")
	if n, err := strconv.Atoi(r.linked(dir + "/iommu_group")); err == nil {
		d.Group = n
	}
	if entries, _ := os.ReadDir(r.path(dir + "/vfio-dev")); len(entries) > 0 {
		d.Node = entries[0].Name()
	}
	d.Memory = largestWindow(r.word(dir + "/resource"))
	return d
}

// linked is the last part of where a link leads; "" for no link.
func (r Root) linked(name string) string {
	to, err := os.Readlink(r.path(name))
	if err != nil {
		return ""
	}
	return filepath.Base(to)
}

// largestWindow is the size of the largest region of memory, of a file with a region a line: its
// first and last address, and flags (IORESOURCE_MEM).
func largestWindow(text string) (most uint64) {
	const memory = 0x200
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		var n [3]uint64
		bad := slices.ContainsFunc([]int{0, 1, 2}, func(i int) (bad bool) {
			var err error
			n[i], err = strconv.ParseUint(f[i], 0, 64)
			return err != nil
		})
		if !bad && n[2]&memory != 0 && n[1] > n[0] {
			most = max(most, n[1]-n[0]+1)
		}
	}
	return most
}

// CanOpenVFIO reports whether this user can give a device to a guest: by its own node, or by its
// group's.
func (r Root) CanOpenVFIO(d *PCIDevice) bool {
	if d.Node != "" && r.access("/dev/vfio/devices/"+d.Node) == nil {
		return true
	}
	return d.Group >= 0 && r.access("/dev/vfio/"+strconv.Itoa(d.Group)) == nil
}
