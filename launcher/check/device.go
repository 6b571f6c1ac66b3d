package check

import (
	"regexp"
	"sync"

	"github.com/vmlatch/vmlatch/launcher/tee"
)

// withDevice makes a check's when of drivers that it is about.
func withDevice(pattern string) func(*tee.Subject) bool {
	return func(s *tee.Subject) bool {
		_, found := s.Any(pattern)
		return found && confidential(s)
	}
}

// deviceChecks are about devices and objects that the spec adds.
func deviceChecks() []tee.Check {
	return []tee.Check{
		{
			ID:       "virtio-dma",
			Severity: tee.Refuse,
			Key:      "device",
			When:     confidential,
			Cause: "a virtio device of a confidential guest must use the modern transport and the DMA API;" +
				" QEMU sees to it, unless a device is told otherwise",
			Fix:    "leave iommu_platform and disable-legacy out of the device",
			Source: "QEMU, hw/core/machine.c, machine_run_board_init; AMDSEV, launch-qemu.sh",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				for _, d := range s.Extra() {
					legacy := d.Props["disable-legacy"]
					if d.Props["iommu_platform"] == "off" || legacy == "off" || legacy == "auto" ||
						d.Props["disable-modern"] == "on" {
						return tee.Failed, d.Kind + " has one of them switched off"
					}
				}
				return tee.OK, ""
			},
		},
		{
			ID:       "extra-objects",
			Severity: tee.Refuse,
			Key:      "object",
			Cause: "the object could change what is launched, open another way to the VM past its latch, or show a" +
				" secret to the host's users",
			Fix: "use the spec's own keys for it; objects that devices need," +
				" such as rng-random, iothread or iommufd, are allowed",
			Source: "design: one monitor for vmlatch, one for people",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				for _, o := range s.Objects {
					if why := objectFault(o); why != "" {
						return tee.Failed, why
					}
				}
				return tee.OK, ""
			},
		},
		{
			ID:       "no-screen",
			Severity: tee.Refuse,
			OfSpec:   true,
			Key:      "display",
			When:     func(s *tee.Subject) bool { return confidential(s) && s.Display.On() },
			Cause:    "a screen shows the host what the guest draws, and its keyboard is the host's",
			Fix:      "leave [display] out; reach the guest by ssh",
			Source:   "PVE, QemuServer.pm; inference",
			Look:     func(*tee.Subject) (tee.Verdict, string) { return tee.Failed, "" },
		},
		{
			ID:       "no-agent",
			Severity: tee.Refuse,
			OfSpec:   true,
			Key:      "agent",
			When:     func(s *tee.Subject) bool { return confidential(s) && s.Agent.On() },
			Cause:    "an agent lets the host run programs in the guest, and read and write its files",
			Fix:      "leave [agent] out",
			Source:   "QEMU, qga/qapi-schema.json, guest-exec",
			Look:     func(*tee.Subject) (tee.Verdict, string) { return tee.Failed, "" },
		},
		{
			ID:       "no-hotplug",
			Severity: tee.Refuse,
			Key:      "device",
			When:     confidential,
			Cause:    "memory and CPUs that come later are neither measured nor encrypted",
			Fix:      "give the guest all of its memory and CPUs from the beginning",
			Source:   "sev-snp-measure; kata-containers, qemu_amd64.go",
			Look:     tee.Without(`pc-dimm|nvdimm|virtio-mem.*|virtio-pmem.*|.*-x86_64-cpu`),
		},
		{
			ID:       "no-loader",
			Severity: tee.Refuse,
			Key:      "device",
			When:     confidential,
			Cause:    "a loader writes into the guest's memory what is not measured",
			Fix:      "give the guest its kernel by [kernel], and the rest on a disk",
			Source:   "QEMU, docs/system/generic-loader.rst",
			Look:     tee.Without(`loader|guest-loader`),
		},
		{
			ID:       "no-balloon",
			Severity: tee.Warn,
			Key:      "device",
			When:     confidential,
			Cause:    "a balloon cannot take encrypted memory back: it is pinned or private",
			Fix:      "leave the balloon out",
			Source:   "PVE; nova, sev.rst",
			Look:     tee.Without(`virtio-balloon.*`),
		},
		{
			ID:       "no-viommu",
			Severity: tee.Warn,
			Key:      "device",
			When:     confidential,
			Cause:    "a virtual IOMMU gives no protection that the guest lacks, and needs a split irqchip",
			Fix:      "leave it out",
			Source:   "QEMU, docs/system/i386; inference",
			Look:     tee.Without(`intel-iommu|amd-iommu|virtio-iommu.*`),
		},
		{
			ID:       "vfio-iommufd",
			Severity: tee.Warn,
			Key:      "device",
			When:     withDevice(`vfio-.*`),
			Cause:    "a passed-through device reaches only shared memory, needs iommufd, and is not attested",
			Fix:      "give the device an iommufd object, and trust it as far as the host",
			Source:   "kubevirt#16407; canonical/tdx",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				d, _ := s.Any(`vfio-.*`)
				return tee.Verify(d.Props["iommufd"] != "", "%s has no iommufd", d.Kind)
			},
		},
		{
			ID:       "option-roms",
			Severity: tee.Warn,
			Key:      "device",
			When:     confidential,
			Cause:    "a network card's option ROM is code that was not measured",
			Fix:      `write romfile = "" for the device`,
			Source:   "AMDSEV; svsm, launch_guest.sh; libvirt kbase",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				for _, d := range s.Extra() {
					if rom, ok := d.Props["romfile"]; networkCards().MatchString(d.Kind) && (!ok || rom != "") {
						return tee.Failed, d.Kind
					}
				}
				return tee.OK, ""
			},
		},
	}
}

var networkCards = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(virtio-net.*|e1000.*|rtl8139|ne2k_pci|pcnet|vmxnet3|i8255.*|tulip|igb)$`)
})
