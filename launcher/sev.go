package launcher

import (
	"context"
	"errors"
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/qmp"
)

// Ways in which KVM sets up a SEV guest. They start SEV-ES guests with different
// registers, which are measured.
const (
	vmsaINIT2  = "init2"  // KVM_SEV_INIT2 (Linux 6.10, QEMU 9.1)
	vmsaLegacy = "legacy" // KVM_SEV_INIT, KVM_SEV_ES_INIT
)

func validateSEV(s *Spec) error {
	c := s.Confidential
	p, err := s.Policy()
	switch {
	case err != nil:
		return s.errorf("confidential.policy", "%v", err)
	case p&sev.PolicyES != 0 && s.tech == TechnologySEV:
		return s.errorf("confidential.policy", `es: write technology = "sev-es"; "sev" encrypts memory only`)
	case c.VMSA != "" && c.VMSA != vmsaINIT2 && c.VMSA != vmsaLegacy:
		return s.errorf("confidential.vmsa", "%q: must be %s or %s", c.VMSA, vmsaINIT2, vmsaLegacy)
	}
	if err := validateConfidential(s); err != nil {
		return err
	}
	return validateSEVLatch(s)
}

func validateSEVLatch(s *Spec) error {
	switch s.Latch.Until {
	case UntilSecret:
		if s.Confidential.Session == "" {
			return s.errorf("latch.until", "secret: without a session there are no keys that could authenticate one")
		}
	case UntilNothing:
		if len(s.Latch.Owner) > 0 {
			return s.errorf("latch.owner", `until = "nothing" asks no owner`)
		}
	case "":
		return s.errorf("latch.until", `without a session nobody can verify the launch; write until = "nothing" to accept that`)
	default:
		return s.errorf("latch.until", `%q: must be "secret" or "nothing"`, s.Latch.Until)
	}
	return nil
}

// sevMeasured is the state in which a guest waits for its secret (QEMU,
// qapi/misc-i386.json, SevState).
const sevMeasured = "launch-secret"

// querySEV checks that the platform has measured what was asked for.
func querySEV(ctx context.Context, conn *qmp.Conn, p *Plan) (*rundir.SEV, error) {
	answer, err := qmp.QuerySEV{}.Execute(ctx, conn)
	if err != nil {
		return nil, err
	}
	if !answer.Enabled {
		return nil, errors.New("QEMU runs, but says that SEV is not enabled")
	}
	want, err := p.spec.Policy()
	if err != nil {
		return nil, err
	}
	if answer.Policy != uint32(want) {
		return nil, fmt.Errorf("QEMU launched the guest with policy %#x instead of %#x", answer.Policy, uint32(want))
	}
	if answer.State != sevMeasured {
		return nil, fmt.Errorf("the platform did not measure the guest: its state is %s instead of %s", answer.State, sevMeasured)
	}
	return p.sevRecord(answer, rundir.SEV{Policy: want}), nil
}

// sevRecord fills in what SEV and SEV-SNP record alike.
func (p *Plan) sevRecord(answer qmp.SEVInfo, r rundir.SEV) *rundir.SEV {
	r.Inputs = p.inputs()
	r.Build = sev.Build{Major: answer.APIMajor, Minor: answer.APIMinor, Build: answer.BuildID}
	return &r
}

// sevObject adds the sev-guest object (QEMU, qapi/qom.json, SevGuestProperties).
func sevObject(b *builder) error {
	policy, err := b.spec.Policy()
	if err != nil {
		return err
	}
	props := map[string]any{"cbitpos": b.facts.cBitPos(), "reduced-phys-bits": reducedPhysBits, "policy": uint32(policy)}
	if c := b.spec.Confidential; c.Session != "" {
		props["dh-cert-file"], props["session-file"] = c.OwnerCert, c.Session
	}
	if b.spec.KernelHashes() {
		props["kernel-hashes"] = true
	}
	if err := b.vmType(props); err != nil {
		return err
	}
	b.choose("policy", policy.String(), b.spec.From("confidential.policy"))
	return b.addObject("sev-guest", props)
}

// reducedPhysBits is what a guest's CPUID tells of address bits lost to
// encryption. It is 1 whatever the host loses (QEMU, target/i386/sev.c,
// query-sev-capabilities).
const reducedPhysBits = 1

// vmType always says how KVM sets up the guest: QEMU's own choice depends on its
// version and on the kernel's, and shows in a SEV-ES guest's measurement.
func (b *builder) vmType(props map[string]any) error {
	want, from := b.spec.Confidential.VMSA, b.spec.From("confidential.vmsa")
	known := b.facts.Info != nil && b.facts.Info.HasObject("sev-guest", "legacy-vm-type")
	if want == "" {
		switch {
		case !known:
			want, from = vmsaLegacy, "this QEMU knows no other"
		case b.facts.emulated():
			want, from = vmsaINIT2, "the emulated platform has it"
		case b.facts.Host.SEV != nil && b.facts.Host.SEV.INIT2 == host.Yes:
			want, from = vmsaINIT2, "KVM has it"
		default:
			want, from = vmsaLegacy, "KVM is older than Linux 6.10, or cannot be asked"
		}
	}
	if known {
		props["legacy-vm-type"] = map[string]string{vmsaINIT2: "off", vmsaLegacy: "on"}[want]
	} else if want == vmsaINIT2 {
		return b.facts.lacks("set up the guest with INIT2", "sev-guest.legacy-vm-type", "property legacy-vm-type of sev-guest")
	}
	b.choose("vmsa", want, from)
	return nil
}
