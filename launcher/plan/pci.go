package plan

import (
	"fmt"
	"regexp"
	"strconv"

	"github.com/vmlatch/vmlatch/firmware/bytesize"
	"github.com/vmlatch/vmlatch/launcher/internal/argv"
)

// PCI is a table [[pci]]: a device of the host's that the guest gets (VFIO).
type PCI struct {
	Address string        `toml:"address"` // 0000:65:00.0, or 65:00.0
	ROM     bool          `toml:"rom"`     // the guest sees its option ROM
	Window  bytesize.Size `toml:"window"`  // of 64-bit addresses for all devices; 0 for what they need
}

// PCIs are the devices of the host's, in order.
type PCIs []PCI

var isPCI = regexp.MustCompile(`^([0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)

func (all *PCIs) complete(g *Guest) error {
	seen := map[string]bool{}
	for i := range *all {
		p, key := &(*all)[i], fmt.Sprintf("pci %d", i+1)
		if !isPCI.MatchString(p.Address) {
			return g.File.Errorf(
				key+".address",
				`%q: must be an address as lspci -D shows it, such as "0000:65:00.0"`,
				p.Address,
			)
		}
		if len(p.Address) == len("65:00.0") {
			p.Address = "0000:" + p.Address
		}
		if seen[p.Address] {
			return g.File.Errorf(key+".address", "%s: is there twice", p.Address)
		}
		seen[p.Address] = true
	}
	return nil
}

// IOMMUFD is the object by which QEMU gives devices to guests since 9.0.
const IOMMUFD = "iommufd"

func (all *PCIs) build(b *Builder) error {
	if len(*all) == 0 {
		return nil
	}
	modern := b.Facts.Info != nil && b.Facts.Info.HasObject(IOMMUFD)
	for _, p := range *all {
		modern = modern && b.Facts.PCI[p.Address] != nil && b.Facts.PCI[p.Address].Node != ""
	}
	if modern {
		b.Option("-object", "iommufd,id=iommufd0")
	}
	var window uint64
	for i, p := range *all {
		port := fmt.Sprintf("port%d", i)
		b.Option("-device", argv.New("pcie-root-port").Set("id", port).SetInt("chassis", i+1).SetInt("slot", i+1).
			String())
		d := argv.New("vfio-pci").Set("host", p.Address).Set("id", fmt.Sprintf("dev-pci%d", i)).Set("bus", port)
		if modern {
			d.Set("iommufd", "iommufd0")
		}
		if !p.ROM { // code that nothing measures
			d.Set("rombar", "0")
		}
		b.Option("-device", d.String())
		if f := b.Facts.PCI[p.Address]; f != nil {
			window += f.Memory
		}
		window = max(window, uint64(p.Window))
	}
	b.pciWindow(window)
	if b.plan.MemoryLock == 0 && !b.Traits.Private { // a device may reach all memory at any time
		b.plan.MemoryLock = LockedMemory(b.Guest.Memory)
	}
	return nil
}

// smallWindow is what OVMF has for devices if it is told nothing, in bytes.
const smallWindow = 32 << 30

// pciWindow tells OVMF of devices that need more addresses than it has for them (OvmfPkg,
// PlatformInitLib/MemDetect.c): a power of two, in MiB, with room for how they are aligned.
func (b *Builder) pciWindow(need uint64) {
	if need <= smallWindow/2 {
		return
	}
	size := uint64(smallWindow)
	for size < 2*need {
		size *= 2
	}
	b.Option("-fw_cfg", argv.Key("name", "opt/ovmf/X-PciMmio64Mb").Set("string", strconv.FormatUint(size>>20, 10)).
		String())
}
