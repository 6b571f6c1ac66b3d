package tee

import (
	"github.com/vmlatch/vmlatch/firmware/igvm"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
)

// igvmChecks look at what is measured of a guest that an IGVM file lays out.
func igvmChecks() []Check {
	return []Check{{
		ID:       "igvm-vcpus",
		Severity: Warn,
		Stage:    PlanStage,
		Key:      "cpus",
		When: func(s *Subject) bool {
			return isSNP(s) && s.Image != nil && s.Image.IGVM
		},
		Cause: "the IGVM file has fewer register pages than the guest has CPUs; KVM measures one for each, so the" +
			" digest differs from the one that tools print for the file",
		Fix:    "measure with --vcpus, or build the file for as many CPUs",
		Source: "coconut-svsm/svsm#294, #349, #353; Linux, arch/x86/kvm/svm/sev.c, snp_launch_update_vmsa",
		Look: func(s *Subject) (Verdict, string) {
			contexts := 0
			err := ovmf.WithFile(s.Plan.Inputs().Firmware, func(b []byte) error {
				f, err := igvm.Parse(b)
				if err == nil {
					contexts = f.Contexts()
				}
				return err
			})
			if err != nil {
				return Unknown, err.Error()
			}
			return Verify(contexts == 0 || s.CPUs <= contexts, "%d in the file, %d CPUs", contexts, s.CPUs)
		},
	}}
}
