package tee

import (
	"strconv"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/qmp"
)

// What AMD's technologies share.

// amd is their vendor, as CPUID names it.
const (
	amd = "AMD"
	// secureProcessor is by which QEMU has guests launched (Linux, drivers/crypto/ccp).
	secureProcessor = "/dev/sev"
)

// measuredModels are the CPU models where they are measured and none is named. They
// have a version: what a bare name stands for can change. Older QEMUs have older
// versions, whose registers start alike.
func measuredModels() []string { return []string{"EPYC-v4", "EPYC-v3", "EPYC-v2"} }

// reducedPhysBits is what a guest's CPUID tells of address bits lost to encryption. It
// is 1 whatever the host loses (QEMU, target/i386/sev.c, query-sev-capabilities).
const reducedPhysBits = 1

// emulatedCBitPos is where swtee keeps the encryption bit. The launcher does not link
// the emulator; a test holds the two together.
const emulatedCBitPos = 51

// cBitPos is the position of the encryption bit in addresses; 0 if it is unknown.
func cBitPos(f *plan.Facts) int {
	switch {
	case f.Emulated():
		return emulatedCBitPos
	case f.Host.SEV != nil:
		return f.Host.SEV.CBitPos
	}
	return 0
}

// amdObject are the properties that the objects of all AMD technologies have.
func amdObject(g *Guest, b *plan.Builder) map[string]any {
	props := map[string]any{"cbitpos": cBitPos(b.Facts), "reduced-phys-bits": reducedPhysBits}
	if g.KernelHashes {
		props["kernel-hashes"] = true
	}
	return props
}

// amdRecord fills in what all AMD technologies record alike.
func amdRecord(p *plan.Plan, answer qmp.SEVInfo, r rundir.SEV) *rundir.SEV {
	r.Inputs = p.Inputs()
	r.Build = sev.Build{Major: answer.APIMajor, Minor: answer.APIMinor, Build: answer.BuildID}
	return &r
}

func amdChecks() []Check {
	isAMD := func(s *Subject) bool { return s.Traits().Vendor == amd }
	return []Check{
		{
			ID:       "cbitpos",
			Severity: Refuse,
			Stage:    PlanStage,
			When:     isAMD,
			Cause:    "the position of the encryption bit is not this processor's",
			Fix:      Defect,
			Source:   "AMD, CPUID Fn8000_001F EBX[5:0]; QEMU, target/i386/sev.c",
			Look: func(s *Subject) (Verdict, string) {
				c, _ := s.Options.Protection()
				bit := cBitPos(s.Facts)
				ok := bit > 0 && c.Props["cbitpos"] == strconv.Itoa(bit)
				return Verify(ok, "%s instead of %d", c.Props["cbitpos"], bit)
			},
		},
		{
			ID:       "reduced-phys-bits",
			Severity: Default,
			Stage:    PlanStage,
			When:     isAMD,
			Cause:    "a guest's CPUID tells of one lost address bit, whatever the host loses",
			Fix:      Defect,
			Source:   "QEMU, target/i386/sev.c, query-sev-capabilities; svsm, launch_guest.sh",
			Look: func(s *Subject) (Verdict, string) {
				c, _ := s.Options.Protection()
				return Verify(c.Props["reduced-phys-bits"] == "1", "%s", c.Props["reduced-phys-bits"])
			},
		},
	}
}
