package host

import "strconv"

// amdRow is one of AMD's technologies: what it needs, in the order in which it
// fails.
type amdRow struct {
	name, parameter, word string
	cpu                   bool
	bit                   string // CPUID Fn8000_001F
}

func (d *detector) amd() {
	c := &d.rep.CPU
	if c.Vendor != vendorAMD && c.Vendor != vendorHygon {
		return
	}
	s := &SEVHost{
		CBitPos:    c.CBitPos,
		SNPEnabled: Unknown,
		INIT2:      Unknown,
		DebugSwap:  d.parameter("kvm_amd/parameters/debug_swap"),
	}
	d.rep.SEV = s
	if v, err := d.root.msr(msrSYSCFG); err == nil {
		s.SNPEnabled = answer(v&syscfgSNP != 0)
	} else if d.parameter("kvm_amd/parameters/sev_snp") == Yes {
		s.SNPEnabled = Yes // KVM offers it only then
	}
	if types, err := d.root.vmTypes(); err == nil {
		s.INIT2 = answer(types&(1<<vmTypeSEV) != 0)
	}
	s.CiphertextHiding, _ = strconv.Atoi(d.root.word("sys/module/kvm_amd/parameters/ciphertext_hiding_asids"))
	if c.SEV {
		s.API, s.SNPAPI = lastMatch(reSEVAPI, d.kernelLog()), lastMatch(reSNPAPI, d.kernelLog())
	}
	for _, row := range []amdRow{
		{SEV, "sev", "SEV", c.SEV, "EAX[1]"},
		{SEVES, "sev_es", "SEV-ES", c.SEVES, "EAX[3]"},
		{SNP, "sev_snp", "SEV-SNP", c.SNP, "EAX[4]"},
	} {
		usable, why, fix := d.amdTechnology(row)
		d.add(row.name, usable, why, fix)
	}
}

func (d *detector) amdTechnology(row amdRow) (usable Answer, why, fix string) {
	switch {
	case !row.cpu:
		return No, "the processor has no " + row.word + " (CPUID 0x8000001f " + row.bit + ")", ""
	case d.rep.KVM.Usable != Yes:
		return No, d.rep.KVM.Why, d.rep.KVM.Fix
	case !d.root.exists("sys/module/kvm_amd"):
		return No, "the kernel module kvm_amd is not loaded", "modprobe kvm_amd " + row.parameter + "=1"
	}
	switch d.parameter("kvm_amd/parameters/" + row.parameter) {
	case No:
		return No, "kvm_amd runs without " + row.word + " (parameter " + row.parameter + ")",
			"enable " + row.word + " in the machine's setup and load kvm_amd with " + row.parameter + "=1; " +
				"the kernel's log says why it was refused"
	case Unknown:
		if !d.root.exists("sys/module/kvm_amd/parameters/" + row.parameter) {
			return No, "this kernel's kvm_amd does not know " + row.word,
				"a newer kernel has it: SEV-ES since 5.11, SEV-SNP since 6.11"
		}
		return Unknown, "kvm_amd's parameter " + row.parameter + " cannot be read", ""
	}
	if err := d.root.access("dev/sev"); err != nil {
		return No, err.Error(), "load the module ccp, and give this user access to /dev/sev (group kvm, or a udev rule)"
	}
	if row.name == SEVES && d.rep.SEV.SNPEnabled == Yes {
		return Yes, "this host runs SEV-SNP, and SEV-ES next to it does not count as secure", ""
	}
	return Yes, "", ""
}
