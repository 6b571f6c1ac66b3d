package check

import (
	"fmt"

	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// vfioDriver is the driver that gives devices to guests.
const vfioDriver = "vfio-pci"

// pciChecks are about devices of the host's that the guest gets.
func pciChecks() []tee.Check {
	const source = "Linux, Documentation/driver-api/vfio.rst"
	// each makes a check of each device.
	each := func(id, cause, fix string, bad func(s *tee.Subject, d *host.PCIDevice) string) tee.Check {
		return tee.Check{
			ID: id, Severity: tee.Refuse, Stage: tee.HostStage, OfSpec: true, Key: "pci", Cause: cause, Fix: fix,
			Source: source,
			When:   func(s *tee.Subject) bool { return len(s.PCI) > 0 && s.Facts.PCI != nil },
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				for _, p := range s.PCI {
					d := s.Facts.PCI[p.Address]
					if d == nil {
						continue
					}
					if why := bad(s, d); why != "" {
						return tee.Failed, p.Address + ": " + why
					}
				}
				return tee.OK, ""
			},
		}
	}
	return []tee.Check{
		each("pci-there", "this host has no such device", "lspci -D shows its devices",
			func(_ *tee.Subject, d *host.PCIDevice) string {
				if !d.There {
					return "it is not there"
				}
				return ""
			}),
		each("pci-iommu", "without an IOMMU a device could write to all of the host's memory",
			"switch the IOMMU on in the firmware's settings, and on the kernel's command line (intel_iommu=on)",
			func(_ *tee.Subject, d *host.PCIDevice) string {
				if d.There && d.Group < 0 {
					return "it is in no IOMMU group"
				}
				return ""
			}),
		each(
			"pci-driver",
			"the host itself uses the device",
			"driverctl set-override ADDRESS vfio-pci; or echo vfio-pci > /sys/bus/pci/devices/ADDRESS/driver_override,"+
				" unbind its driver, and echo ADDRESS > /sys/bus/pci/drivers_probe",
			func(_ *tee.Subject, d *host.PCIDevice) string {
				switch {
				case !d.There || d.Driver == vfioDriver:
					return ""
				case d.Driver == "":
					return "it has no driver"
				}
				return "its driver is " + d.Driver
			},
		),
		each(
			"pci-group",
			"devices of one IOMMU group can reach each other, so that only one party may have them all",
			"give the guest the others too, or bind them to vfio-pci and leave them; another slot may have a group"+
				" of its own",
			func(_ *tee.Subject, d *host.PCIDevice) string {
				for _, m := range d.Mates {
					if !m.IsBridge() && m.Driver != "" && m.Driver != vfioDriver {
						return fmt.Sprintf(
							"%s, of the same group %d, is used by the host (%s)",
							m.Address,
							d.Group,
							m.Driver,
						)
					}
				}
				return ""
			},
		),
		each("pci-rights", "this user may not open the device",
			"chown the device under /dev/vfio to this user by a udev rule; a unit needs DeviceAllow= for it",
			func(s *tee.Subject, d *host.PCIDevice) string {
				if d.There && d.Driver == vfioDriver && !s.Facts.OpensVFIO[d.Address] {
					return "it cannot be opened"
				}
				return ""
			}),
		{
			ID: "pci-modern", Severity: tee.Refuse, Stage: tee.HostStage, OfSpec: true, Key: "pci",
			When:   func(s *tee.Subject) bool { return len(s.PCI) > 0 && private(s) && s.Facts.Info != nil },
			Cause:  "a guest with private memory can have devices by iommufd alone",
			Fix:    "take QEMU 9.2 or newer, and a kernel with CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV",
			Source: "QEMU, hw/vfio; docs/devel/vfio-iommufd.rst",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				for _, p := range s.PCI {
					d := s.Facts.PCI[p.Address]
					if !s.Facts.Info.HasObject(plan.IOMMUFD) || d != nil && d.Node == "" {
						return tee.Failed, p.Address
					}
				}
				return tee.OK, ""
			},
		},
		{
			ID: "pci-unattested", Severity: tee.Warn, OfSpec: true, Key: "pci",
			When:   func(s *tee.Subject) bool { return len(s.PCI) > 0 && confidential(s) },
			Cause:  "the device is not attested by the launch: it reaches what the guest shares, and may lie",
			Fix:    "have the guest verify the device itself (SPDM, a vendor's attestation) before it trusts it",
			Source: "PCI-SIG, TDISP; kubevirt#16407",
			Look:   func(*tee.Subject) (tee.Verdict, string) { return tee.Failed, "" },
		},
	}
}
