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
	types, err := d.root.vmTypes()
	if err == nil {
		s.INIT2 = answer(types&(1<<vmTypeSEV) != 0)
	}
	failed := map[string]string{}
	if c.SEV {
		failed = pspFailures(d.kernelLog())
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
		if usable == Yes {
			if n, w, f := d.amdRefused(row.name, failed, types); n == No {
				usable, why, fix = n, w, f
			}
		}
		d.add(row.name, usable, why, fix)
	}
}

// amdRefused is what makes a technology useless that all of KVM's parameters promise.
func (d *detector) amdRefused(name string, failed map[string]string, types uint32) (usable Answer, why, fix string) {
	word := map[string]string{SEV: "SEV", SEVES: "SEV", SNP: "SEV-SNP"}[name]
	c := d.rep.CPU
	slots, counted := d.root.misc("misc.capacity")["sev"]
	if !counted {
		slots, counted = c.MaxGuests-c.MinSEVASID+1, c.MaxGuests > 0 && c.MinSEVASID > 0
	}
	switch {
	case failed[word] != "":
		return No, failed[word], fixPSP
	case name == SEV && counted && slots <= 0:
		return No, "all address-space IDs belong to SEV-ES and SEV-SNP: none is left for SEV",
			"use sev-es or sev-snp, or change the machine's setup: SEV ASID count, and SEV-ES ASID space limit"
	case name == SNP && types != 0 && types&(1<<vmTypeSNP) == 0:
		return No, "KVM does not offer SEV-SNP guests, although its parameter says so (KVM_CAP_VM_TYPES)",
			"use a kernel and a kvm_amd that belong together; the kernel's log says what did not start"
	}
	return Yes, "", ""
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
		if row.name != SEV && d.rep.CPU.MinSEVASID == 1 { // Linux, sev_hardware_setup
			return No, "no address-space ID is set aside for " + row.word + " (CPUID 0x8000001f EDX is 1)",
				"raise the SEV-ES ASID space limit in the machine's setup"
		}
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
