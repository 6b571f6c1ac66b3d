package launcher

import (
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/vmlatch/vmlatch/firmware/sev"
)

// When a check applies.
func confidential(s *subject) bool { return s.tech.build != nil }

func isSEV(s *subject) bool        { return s.tech.name == TechnologySEV || s.tech.name == TechnologySEVES }
func isSNP(s *subject) bool        { return s.tech.name == TechnologySNP }
func isTDX(s *subject) bool        { return s.tech.name == TechnologyTDX }
func isPrivate(s *subject) bool    { return s.tech.private }
func hasRegisters(s *subject) bool { return s.tech.modelMeasured }
func attested(s *subject) bool     { return confidential(s) && s.tech.name != TechnologyMKTME }

// specChecks need the spec alone. ParseSpec makes them, so that a library's user
// gets no spec that they refuse.
var specChecks = []Check{
	{
		ID: "machine-q35", Severity: Refuse, key: "machine", when: confidential,
		Cause: "confidential guests need the machine type q35", Fix: `write machine = "q35", or a version of it`,
		Source: "nova hardware.py, _check_machine_type; libvirt, launch_security_sev.rst",
		look: func(s *subject) (Verdict, string) {
			m := s.spec.Machine
			return verdict(m == "q35" || strings.HasPrefix(m, "pc-q35"), "%q: confidential guests need q35", m)
		},
	},
	{
		ID: "no-variable-store", Severity: Refuse, key: "firmware.vars", when: attested,
		Cause: "a variable store is not measured: the host could change what the guest boots", Fix: "use one stateless firmware image, and leave vars out",
		Source: "QEMU, docs/system/i386/amd-memory-encryption.rst; nova, stateless firmware",
		look: func(s *subject) (Verdict, string) {
			return verdict(s.spec.Firmware.Vars == "", "%s: a variable store is not measured: the host could change what the guest boots", s.spec.Firmware.Vars)
		},
	},
	{
		ID: "kernel-hashes-kernel", Severity: Refuse, key: "confidential.kernel-hashes", when: confidential,
		Cause: "kernel-hashes is on, and there is no kernel to measure", Fix: "give [kernel] image, or leave kernel-hashes out",
		Source: "QEMU, target/i386/sev.c",
		look: func(s *subject) (Verdict, string) {
			return verdict(!s.spec.KernelHashes() || s.spec.Kernel.Image != "", "there is no kernel to measure")
		},
	},
	{
		ID: "kernel-measured", Severity: Warn, key: "confidential.kernel-hashes", when: func(s *subject) bool { return s.tech.kernelHashes && s.spec.Kernel.Image != "" },
		Cause: "kernel, initrd and command line are not measured: the host can exchange them", Fix: "write kernel-hashes = true",
		Source: "QEMU, docs/system/i386/amd-memory-encryption.rst",
		look:   func(s *subject) (Verdict, string) { return verdict(s.spec.KernelHashes(), "") },
	},
	{
		ID: "sev-policy-debug", Severity: Refuse, key: "confidential.policy", when: isSEV,
		Cause: "the policy allows debugging: the host could read and change the guest's memory", Fix: `add "no-debug" to policy`,
		Source: "SEV API, chapter 3, table 2; libvirt formatdomain; nova",
		look: func(s *subject) (Verdict, string) {
			p, _ := s.spec.Policy()
			return verdict(p&sev.PolicyNoDebug != 0, "lacks no-debug: the host could read and change the guest's memory through debug commands")
		},
	},
	{
		ID: "sev-policy-key-sharing", Severity: Warn, key: "confidential.policy", when: isSEV,
		Cause: "the policy lets other guests have the same key", Fix: `add "no-key-sharing" to policy`,
		Source: "SEV API, chapter 3, table 2; libvirt formatdomain",
		look: func(s *subject) (Verdict, string) {
			p, _ := s.spec.Policy()
			return verdict(p&sev.PolicyNoKeySharing != 0, "")
		},
	},
	{
		ID: "session-pair", Severity: Refuse, key: "confidential", when: isSEV,
		Cause: "owner-cert and session go together", Fix: "take both from one latchkey session",
		Source: "QEMU, qapi/qom.json, SevGuestProperties; AMDSEV#70",
		look: func(s *subject) (Verdict, string) {
			c := s.spec.Confidential
			return verdict((c.OwnerCert == "") == (c.Session == ""), "owner-cert and session go together: both come from one latchkey session")
		},
	},
	{
		ID: "id-block-pair", Severity: Refuse, key: "confidential", when: isSNP,
		Cause: "id-block and id-auth go together", Fix: `take both from one "latchkey idblock make"`,
		Source: "QEMU, qapi/qom.json, SevSnpGuestProperties",
		look: func(s *subject) (Verdict, string) {
			c := s.spec.Confidential
			return verdict((c.IDBlock == "") == (c.IDAuth == ""), "id-block and id-auth go together: both come from one latchkey idblock make")
		},
	},
	{
		ID: "snp-policy-debug", Severity: Refuse, key: "confidential.policy", when: isSNP,
		Cause: "the policy allows debugging: the host could read and change the guest's memory", Fix: `take "debug" out of policy`,
		Source: "SNP ABI, chapter 4.3, table 9; Linux, SNP policy mask",
		look: func(s *subject) (Verdict, string) {
			p, _ := s.spec.SNPPolicy()
			return verdict(p&sev.SNPPolicyDebug == 0, "debug: the host could read and change the guest's memory through debug commands")
		},
	},
	{
		ID: "snp-policy-migration", Severity: Refuse, key: "confidential.policy", when: isSNP,
		Cause: "the policy allows a migration agent, which could take the guest's memory elsewhere; QEMU has none", Fix: `take "migrate" out of policy`,
		Source: "SNP ABI, chapter 4.3, table 9",
		look: func(s *subject) (Verdict, string) {
			p, _ := s.spec.SNPPolicy()
			return verdict(p&sev.SNPPolicyMigrate == 0, "migrate: a migration agent could take the guest's memory elsewhere")
		},
	},
	{
		ID: "cpu-model-named", Severity: Refuse, key: "cpu", when: hasRegisters,
		Cause: "the registers that a CPU starts with are measured, so its model must have a name that means the same everywhere", Fix: "name a model such as " + measuredModel,
		Source: "kata-containers#12210; sev-snp-measure --vcpu-type",
		look: func(s *subject) (Verdict, string) {
			m := modelOf(s.spec.CPU)
			return verdict(m != "host" && m != "max", "%q: the registers that a CPU starts with are measured; name a model such as %s", m, measuredModel)
		},
	},
	{
		ID: "cpu-model-versioned", Severity: Warn, key: "cpu", when: func(s *subject) bool { return hasRegisters(s) && s.spec.CPU != "" },
		Cause: "the CPU model has no version: what its name stands for depends on the machine type, and it is measured", Fix: "add the version, as in EPYC-Milan-v1",
		Source: "QEMU, docs/system/cpu-models-x86.rst; sev-snp-measure --vcpu-type",
		look: func(s *subject) (Verdict, string) {
			m := modelOf(s.spec.CPU)
			return verdict(versioned().MatchString(m), "%s", m)
		},
	},
	{
		ID: "tdx-attributes", Severity: Refuse, key: "confidential.policy", when: isTDX,
		Cause: "the attributes let the host look in or confuse the guest, or QEMU does not take them", Fix: `use "sept-ve-disable", and perhaps "pks" and "perfmon"`,
		Source: "QEMU, docs/system/i386/tdx.rst; nova 0x10000000",
		look: func(s *subject) (Verdict, string) {
			a, _ := s.spec.TDAttributes()
			switch unknown := a &^ (TDDebug | TDSEPTVEDisable | TDPKS | TDPerfmon); {
			case a&TDDebug != 0:
				return CheckFailed, "debug: the host could read the guest's memory"
			case a&TDSEPTVEDisable == 0:
				return CheckFailed, "lacks sept-ve-disable: by taking pages away the host could run the guest's exception handlers"
			default:
				return verdict(unknown == 0, "%#x: these bits are not for guests", uint64(unknown))
			}
		},
	},
	{
		ID: "tdx-cpu-host", Severity: Refuse, key: "cpu", when: isTDX,
		Cause: "TDX guests have the host's CPU, as far as the TDX module allows", Fix: `write cpu = "host", or leave cpu out`,
		Source: "QEMU, docs/system/i386/tdx.rst",
		look: func(s *subject) (Verdict, string) {
			m := modelOf(s.spec.CPU)
			return verdict(m == "" || m == "host", "%q: must be host", m)
		},
	},
	{
		ID: "tdx-hugepages", Severity: Warn, key: "memory-backend.hugepages", when: isTDX,
		Cause: "huge pages gain nothing: private memory comes in pages of 4 KiB", Fix: "leave hugepages out",
		Source: "nova, TDX spec; canonical/tdx#118",
		look:   func(s *subject) (Verdict, string) { return verdict(s.spec.Backend.HugePages == 0, "") },
	},
	{
		ID: "private-memory-backend", Severity: Refuse, key: "memory-backend.type", when: isPrivate,
		Cause: "guests with private memory share the rest of it with the host through a memfd", Fix: "leave type and share of [memory-backend] out",
		Source: "AMDSEV, snp-latest; svsm, launch_guest.sh",
		look: func(s *subject) (Verdict, string) {
			b := s.spec.Backend
			return verdict(b.Type != "ram" && (b.Share == nil || *b.Share), "must be memfd with share = true")
		},
	},
	{
		ID: "private-memory-twice", Severity: Warn, key: "memory-backend.prealloc", when: isPrivate,
		Cause: "prealloc takes the memory that the guest shares for the whole size, beside its private memory", Fix: "leave prealloc out",
		Source: "cloud-hypervisor#8501; AMDSEV#250",
		look: func(s *subject) (Verdict, string) {
			p := s.spec.Backend.Prealloc
			return verdict(p == nil || !*p, "")
		},
	},
}

// modelOf is a CPU model without its feature flags.
func modelOf(cpu string) string {
	model, _, _ := strings.Cut(cpu, ",")
	return model
}

var versioned = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`-v\d+$`) })

// extraDevices are what the spec adds by itself.
func (s *subject) extraDevices() []device {
	var all []device
	for _, d := range s.spec.Devices {
		p := texts(d)
		all = append(all, device{p["driver"], p})
	}
	return all
}

// anyDevice returns the first extra device that a pattern of drivers matches.
func (s *subject) anyDevice(pattern string) (device, bool) {
	re := regexp.MustCompile("^(?:" + pattern + ")$")
	all := s.extraDevices()
	i := slices.IndexFunc(all, func(d device) bool { return re.MatchString(d.kind) })
	if i < 0 {
		return device{}, false
	}
	return all[i], true
}

// without makes a check's look of drivers that must not be there.
func without(pattern string) func(*subject) (Verdict, string) {
	return func(s *subject) (Verdict, string) {
		d, found := s.anyDevice(pattern)
		return verdict(!found, "%s", d.kind)
	}
}

// with makes a check's when of drivers that it is about.
func withDevice(pattern string) func(*subject) bool {
	return func(s *subject) bool {
		_, found := s.anyDevice(pattern)
		return found && confidential(s)
	}
}

// deviceChecks are about devices and objects that the spec adds.
var deviceChecks = []Check{
	{
		ID: "virtio-dma", Severity: Refuse, key: "device", when: confidential,
		Cause: "a virtio device of a confidential guest must use the modern transport and the DMA API; QEMU sees to it, unless a device is told otherwise", Fix: "leave iommu_platform and disable-legacy out of the device",
		Source: "QEMU, hw/core/machine.c, machine_run_board_init; AMDSEV, launch-qemu.sh",
		look: func(s *subject) (Verdict, string) {
			for _, d := range s.extraDevices() {
				if d.props["iommu_platform"] == "off" || d.props["disable-legacy"] == "off" || d.props["disable-legacy"] == "auto" || d.props["disable-modern"] == "on" {
					return CheckFailed, d.kind + " has one of them switched off"
				}
			}
			return CheckOK, ""
		},
	},
	{
		ID: "extra-objects", Severity: Refuse, key: "object",
		Cause: "the object could change what is launched, or open another way to the VM past its latch", Fix: "use the spec's own keys for it; objects that devices need, such as rng-random, iothread or iommufd, are allowed",
		Source: "design: one monitor for vmlatch, one for people",
		look: func(s *subject) (Verdict, string) {
			for _, o := range s.spec.Objects {
				kind, id := texts(o)["qom-type"], texts(o)["id"]
				if !harmlessObjects().MatchString(kind) || id == objectID || id == "ram" {
					return CheckFailed, kind
				}
			}
			return CheckOK, ""
		},
	},
	{
		ID: "no-hotplug", Severity: Refuse, key: "device", when: confidential,
		Cause: "memory and CPUs that come later are neither measured nor encrypted", Fix: "give the guest all of its memory and CPUs from the beginning",
		Source: "sev-snp-measure; kata-containers, qemu_amd64.go",
		look:   without(`pc-dimm|nvdimm|virtio-mem.*|virtio-pmem.*|.*-x86_64-cpu`),
	},
	{
		ID: "no-loader", Severity: Refuse, key: "device", when: confidential,
		Cause: "a loader writes into the guest's memory what nobody measures", Fix: "give the guest its kernel by [kernel], and the rest on a disk",
		Source: "QEMU, docs/system/generic-loader.rst",
		look:   without(`loader|guest-loader`),
	},
	{
		ID: "no-balloon", Severity: Warn, key: "device", when: confidential,
		Cause: "a balloon cannot take encrypted memory back: it is pinned or private", Fix: "leave the balloon out",
		Source: "PVE; nova, sev.rst",
		look:   without(`virtio-balloon.*`),
	},
	{
		ID: "no-viommu", Severity: Warn, key: "device", when: confidential,
		Cause: "a virtual IOMMU gives no protection that the guest lacks, and needs a split irqchip", Fix: "leave it out",
		Source: "QEMU, docs/system/i386; inference",
		look:   without(`intel-iommu|amd-iommu|virtio-iommu.*`),
	},
	{
		ID: "vfio-iommufd", Severity: Warn, key: "device", when: withDevice(`vfio-.*`),
		Cause: "a passed-through device reaches only shared memory, needs iommufd, and is not attested", Fix: "give the device an iommufd object, and trust it as far as the host",
		Source: "kubevirt#16407; canonical/tdx",
		look: func(s *subject) (Verdict, string) {
			d, _ := s.anyDevice(`vfio-.*`)
			return verdict(d.props["iommufd"] != "", "%s has no iommufd", d.kind)
		},
	},
	{
		ID: "vtpm-evidence", Severity: Warn, key: "device", when: confidential,
		Cause: "a vTPM is the host's: what it says proves nothing to the guest's owner", Fix: "do not count it as evidence",
		Source: "systemd-vmspawn(1); gce-tcb-verifier#64",
		look:   without(`tpm-.*`),
	},
	{
		ID: "tdx-boot-disk", Severity: Refuse, key: "device", when: isTDX,
		Cause: "TDX firmware has no driver for SCSI disks, so the guest could not boot from one", Fix: "use [[disk]], which is virtio-blk",
		Source: "nova, TDX spec",
		look:   without(`scsi-(hd|cd|block|generic)|(virtio|vhost|vhost-user)-scsi.*|pvscsi|megasas.*|mptsas.*|lsi.*|am53c974|dc390|.*-scsi`),
	},
	{
		ID: "option-roms", Severity: Warn, key: "device", when: confidential,
		Cause: "a network card's option ROM is code that nobody measured", Fix: `write romfile = "" for the device`,
		Source: "AMDSEV; svsm, launch_guest.sh; libvirt kbase",
		look: func(s *subject) (Verdict, string) {
			for _, d := range s.extraDevices() {
				if rom, ok := d.props["romfile"]; networkCards().MatchString(d.kind) && (!ok || rom != "") {
					return CheckFailed, d.kind
				}
			}
			return CheckOK, ""
		},
	},
}

var (
	// Others could be the confidential object itself, a monitor, or a way into the
	// guest's memory (qtest, colo, remote processes).
	harmlessObjects = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^(rng-.*|iothread|iommufd|throttle-group|tls-creds-.*|secret|` +
			`memory-backend-(ram|memfd|file)|cryptodev-backend.*|can-.*|thread-context|authz-.*)$`)
	})
	networkCards = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^(virtio-net.*|e1000.*|rtl8139|ne2k_pci|pcnet|vmxnet3|i8255.*|tulip|igb)$`)
	})
)
