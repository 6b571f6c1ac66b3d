package launcher

import (
	"fmt"
	"os"
	"slices"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/slot"
)

// onHardware: what is emulated needs nothing of this host's.
func onHardware(s *subject) bool { return confidential(s) && !s.facts.emulated() }

// hardware is for checks of what the vendor's processors have; that the host has
// one is another check.
func hardware(when func(*subject) bool) func(*subject) bool {
	return func(s *subject) bool {
		h := s.facts.Host
		return onHardware(s) && when(s) && (isTDX(s) && h.TDX != nil || !isTDX(s) && h.SEV != nil)
	}
}

// answered turns an answer of the host's into a verdict.
func answered(a, want host.Answer, format string, args ...any) (Verdict, string) {
	if a == host.Unknown {
		return CheckUnknown, "cannot be read by this user"
	}
	return verdict(a == want, format, args...)
}

// Checks that a start treats in their own way: it may wait for a slot, and a name
// that is taken is nobody's fault.
const (
	freeSlots       = "free-slots"
	freeHugePages   = "hugepages-free"
	memoryAvailable = "memory-available"
	nameFree        = "name-free"
)

// hostChecks need the host and its QEMU besides the spec.
var hostChecks = []Check{
	{
		ID: "technology-usable", Severity: Refuse, stage: hostStage, when: onHardware,
		Cause: "this host cannot run guests of the technology", Fix: `"vmlatch host" says what is missing; choose another host or technology if it is the processor`,
		Source: "snphost ok; virt-host-validate; Linux, arch/x86/kvm",
		look: func(s *subject) (Verdict, string) {
			t := s.facts.Host.Technology(s.tech.name)
			if t.Usable == host.Unknown {
				return CheckUnknown, t.Why
			}
			return verdict(t.Usable == host.Yes, "%s", t.Why)
		},
	},
	{
		ID: "qemu-object", Severity: Refuse, stage: hostStage, when: confidential,
		Cause: "this QEMU has no object for the technology", Fix: "install a QEMU that has it, or name another one with qemu = in the spec",
		Source: "QEMU, qapi/qom.json",
		look: func(s *subject) (Verdict, string) {
			err := s.spec.knows(s.facts, s.tech)
			return verdict(err == nil, "%v", err)
		},
	},
	{
		ID: "cpu-model-known", Severity: Refuse, stage: hostStage, ofSpec: true, key: "cpu", when: func(s *subject) bool { return s.spec.CPU != "" && s.facts.Info != nil },
		Cause: "this QEMU does not know the CPU model", Fix: "run the QEMU with -cpu help, and correct the spec",
		Source: "QEMU, query-cpu-definitions",
		look: func(s *subject) (Verdict, string) {
			m := modelOf(s.spec.CPU)
			return verdict(slices.Contains(s.facts.Info.CPUs, m), "%s", m)
		},
	},
	{
		ID: "vcpu-limit", Severity: Refuse, stage: hostStage, ofSpec: true, key: "cpus", when: func(s *subject) bool { return s.facts.Info != nil && s.facts.Info.MaxCPUs[s.spec.Machine] > 0 },
		Cause: "the machine type takes fewer CPUs", Fix: "lower cpus",
		Source: "QEMU, query-machines",
		look: func(s *subject) (Verdict, string) {
			most := s.facts.Info.MaxCPUs[s.spec.Machine]
			return verdict(s.spec.CPUs <= most, "%d of at most %d", s.spec.CPUs, most)
		},
	},
	{
		ID: freeSlots, Severity: Refuse, stage: hostStage,
		when: func(s *subject) bool {
			p := s.facts.slot(s.tech.name)
			return p != nil && (p.Size != slot.Unlimited || !s.facts.emulated())
		},
		Cause: "all encryption slots are taken", Fix: "stop another confidential VM; the pool's size is in vmlatch host, an operator's limit in [slots] of host.toml",
		Source: "Linux, misc controller; nova, num_memory_encrypted_guests",
		look: func(s *subject) (Verdict, string) {
			p := s.facts.slot(s.tech.name)
			if p.Size == slot.Unlimited {
				return CheckUnknown, "nobody says how many slots there are"
			}
			used, err := p.pool().Used()
			if err != nil {
				return CheckUnknown, err.Error()
			}
			return verdict(used < p.Size, "%d of %d in pool %s", used, p.Size, p.Pool)
		},
	},
	{
		ID: "memory-lock", Severity: Refuse, stage: hostStage, key: "memory", when: func(s *subject) bool { return onHardware(s) && s.tech.locked },
		Cause: "QEMU has to pin the guest's memory, and may not pin as much", Fix: "raise the limit: LimitMEMLOCK= of the unit, memlock in limits.conf, or ulimit -l",
		Source: "nova, AMD SEV spec; libvirt; enarx-keepldr#14",
		look: func(s *subject) (Verdict, string) {
			need := lockedMemory(s.spec.Memory)
			return verdict(s.facts.MaxLock >= uint64(need), "it needs %v and gets %v", need, Size(s.facts.MaxLock))
		},
	},
	{
		ID: memoryAvailable, Severity: Warn, stage: hostStage, key: "memory", when: func(s *subject) bool { return s.facts.Host.MemFree > 0 },
		Cause: "the guest may get more memory than the host has left; what is encrypted cannot be swapped out", Fix: "lower memory, or stop another VM",
		Source: "cloud-hypervisor#8501; nova, AMD SEV spec",
		look: func(s *subject) (Verdict, string) {
			return verdict(uint64(s.spec.Memory) <= s.facts.Host.MemFree, "%v of %d MiB", s.spec.Memory, s.facts.Host.MemFree>>20)
		},
	},
	{
		ID: freeHugePages, Severity: Refuse, stage: hostStage, key: "memory-backend.hugepages",
		when:  func(s *subject) bool { return s.spec.Backend.HugePages != 0 && s.facts.HugePages != nil },
		Cause: "the host has too few free huge pages of the size", Fix: "reserve more (sysctl vm.nr_hugepages, or hugepages= on the kernel's command line), or leave hugepages out",
		Source: "Linux, Documentation/admin-guide/mm/hugetlbpage.rst",
		look: func(s *subject) (Verdict, string) {
			size := s.spec.Backend.HugePages
			free, need := s.facts.HugePages[uint64(size)], uint64(s.spec.Memory/size)
			return verdict(free >= need, "%d of %v are free, %d are needed", free, size, need)
		},
	},
	{
		ID: "es-on-snp-host", Severity: Warn, stage: hostStage, when: hardware(func(s *subject) bool { return s.tech.name == TechnologySEVES }),
		Cause: "the host runs SEV-SNP, and SEV-ES beside it does not count as secure", Fix: `use technology = "sev-snp"`,
		Source: "CVE-2025-48514; nova, host.py",
		look: func(s *subject) (Verdict, string) {
			return answered(s.facts.Host.SEV.SNPEnabled, host.No, "")
		},
	},
	{
		ID: "vmsa-features", Severity: Warn, stage: hostStage, when: hardware(func(s *subject) bool { return s.tech.name == TechnologySEVES }),
		Cause: "KVM sets a feature bit in the guest's registers (debug_swap), which is measured", Fix: "measure with --features 0x20, or load kvm_amd with debug_swap=0",
		Source: "AMDSEV#195; Linux, arch/x86/kvm/svm/sev.c",
		look: func(s *subject) (Verdict, string) {
			return verdict(s.facts.Host.SEV.DebugSwap != host.Yes, "")
		},
	},
	{
		ID: "snp-policy-smt", Severity: Refuse, stage: hostStage, key: "confidential.policy", when: hardware(isSNP),
		Cause: "the policy forbids simultaneous multithreading, and the host has it on", Fix: `add "smt" to policy, or switch SMT off in the machine's setup`,
		Source: "SNP ABI, chapter 4.3; AMDSEV#240",
		look: func(s *subject) (Verdict, string) {
			if p, _ := s.spec.SNPPolicy(); p&sev.SNPPolicySMT != 0 {
				return CheckOK, ""
			}
			return answered(s.facts.Host.SMT, host.No, "")
		},
	},
	{
		ID: "snp-policy-support", Severity: Warn, stage: hostStage, key: "confidential.policy", when: hardware(isSNP),
		Cause: "the policy demands ciphertext hiding, and KVM has no address-space IDs for it", Fix: "load kvm_amd with ciphertext_hiding_asids=N, or lower the policy if its owner agrees",
		Source: "Linux, kvm-amd.ciphertext_hiding_asids; libvirt formatdomain",
		look: func(s *subject) (Verdict, string) {
			p, _ := s.spec.SNPPolicy()
			return verdict(p&sev.SNPPolicyCiphertextHiding == 0 || s.facts.Host.SEV.CiphertextHiding > 0, "")
		},
	},
	{
		ID: "snp-iommu", Severity: Refuse, stage: hostStage, when: hardware(isSNP),
		Cause: "SEV-SNP needs an IOMMU that translates: devices could reach guest memory", Fix: "enable the IOMMU in the machine's setup, and boot without iommu=pt",
		Source: "Linux, drivers/iommu/amd; AMDSEV README",
		look: func(s *subject) (Verdict, string) {
			i := s.facts.Host.IOMMU
			if i.Present == host.No || i.Passthrough == host.Yes {
				return CheckFailed, fmt.Sprintf("present: %s, pass-through: %s", i.Present, i.Passthrough)
			}
			return answered(i.Passthrough, host.No, "")
		},
	},
	{
		ID: "snp-firmware", Severity: Refuse, stage: hostStage, when: hardware(isSNP),
		Cause: "the secure processor's firmware is older than 1.51", Fix: "update it (the package with AMD's SEV firmware, or the machine's)",
		Source: "AMDSEV README; kubevirt",
		look: func(s *subject) (Verdict, string) {
			var major, minor int
			if n, _ := fmt.Sscanf(s.facts.Host.SEV.SNPAPI, "%d.%d", &major, &minor); n != 2 {
				return CheckUnknown, "the kernel's log cannot be read, or does not say"
			}
			return verdict(major > 1 || major == 1 && minor >= 51, "%s", s.facts.Host.SEV.SNPAPI)
		},
	},
	{
		ID: "snp-kernel", Severity: Refuse, stage: hostStage, when: hardware(isSNP),
		Cause: "SEV-SNP guests need Linux 6.11 or newer on the host", Fix: "install a newer kernel",
		Source: "Linux 6.11; AMDSEV README",
		look: func(s *subject) (Verdict, string) {
			return verdict(s.facts.Host.KernelAtLeast(6, 11), "%s", s.facts.Host.Kernel)
		},
	},
	{
		ID: "ciphertext-hiding", Severity: Warn, stage: hostStage, when: hardware(isSNP),
		Cause: "the host can read the guest's ciphertext, and learn from how it changes", Fix: "on processors that have ciphertext hiding, load kvm_amd with ciphertext_hiding_asids=N",
		Source: "snphost ok; Linux 6.18",
		look: func(s *subject) (Verdict, string) {
			return verdict(s.facts.Host.SEV.CiphertextHiding > 0, "")
		},
	},
	{
		ID: "tdx-kernel", Severity: Refuse, stage: hostStage, when: hardware(isTDX),
		Cause: "TDX guests need Linux 6.16 or newer on the host", Fix: "install a newer kernel",
		Source: "libvirt 11.6 notes; canonical/tdx",
		look: func(s *subject) (Verdict, string) {
			return verdict(s.facts.Host.KernelAtLeast(6, 16), "%s", s.facts.Host.Kernel)
		},
	},
	{
		ID: "tdx-module", Severity: Refuse, stage: hostStage, when: hardware(isTDX),
		Cause: "the TDX module did not start", Fix: "the kernel's log says why (dmesg, lines with tdx)",
		Source: "Linux, arch/x86/virt/vmx/tdx",
		look: func(s *subject) (Verdict, string) {
			return answered(s.facts.Host.TDX.Initialized, host.Yes, "")
		},
	},
	{
		ID: "tdx-quote-service", Severity: Warn, stage: hostStage, key: "confidential.quote-socket", when: isTDX,
		Cause: "the guest cannot get quotes, which alone prove what it is", Fix: "run Intel's quote generation service, and name its socket: quote-socket",
		Source: "QEMU, docs/system/i386/tdx.rst; canonical/tdx",
		look: func(s *subject) (Verdict, string) {
			path := s.spec.Confidential.QuoteSocket
			if path == "" {
				return CheckFailed, "no quote-socket is named"
			}
			info, err := os.Stat(path)
			if err != nil {
				return CheckFailed, err.Error()
			}
			return verdict(info.Mode()&os.ModeSocket != 0, "%s: is no socket", path)
		},
	},
	{
		ID: "machine-pinned", Severity: Warn, stage: hostStage, key: "machine", when: func(s *subject) bool { return isTDX(s) && s.facts.Info != nil },
		Cause: "the machine type has no version: another QEMU builds other tables, which the guest's firmware measures into RTMR0", Fix: "write the version into machine",
		Source: "near/mpc#2672; dstack#340",
		look: func(s *subject) (Verdict, string) {
			full, alias := s.facts.Info.Machines[s.spec.Machine]
			return verdict(!alias, "%s is %s here", s.spec.Machine, full)
		},
	},
	{
		ID: nameFree, Severity: Refuse, stage: planStage, key: "name",
		Cause: "a VM of this name is running, or being launched", Fix: `stop it, or start this one under another name (--name)`,
		Source: "canonical/tdx, run_td; lxd#11670",
		look: func(s *subject) (Verdict, string) {
			e, err := s.plan.Dirs.Peek(s.plan.Name)
			if err != nil || e == nil {
				return CheckOK, "" // nobody has it, or it is found out when it is taken
			}
			return verdict(e.Status() == rundir.Ended || e.Status() == rundir.Abandoned, "it is %s", e.Status())
		},
	},
}
