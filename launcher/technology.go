package launcher

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/launcher/internal/argv"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/qmp"
)

// Names of technologies.
const (
	TechnologyNone = "none"
	TechnologySEV  = "sev"
	TechnologySNP  = "sev-snp"
)

// technology is one way to protect a guest: a row of this table, and nothing
// else in the launcher knows it by name.
type technology struct {
	name     string
	validate func(*Spec) error
	object   func(*builder) error // adds the QEMU object; nil for plain VMs
	// query checks, once the machine is built, that it is what was asked for; nil
	// for plain VMs.
	query      func(context.Context, *qmp.Conn, *Plan) (*rundir.SEV, error)
	measurable bool   // the platform shows a measurement while the guest is paused
	model      string // CPU model where none is named; "" where it is not measured
}

var technologies = []technology{
	{name: TechnologyNone, validate: validatePlain},
	{name: TechnologySEV, validate: validateSEV, object: sevObject, query: querySEV, measurable: true},
	{name: TechnologySNP, validate: validateSNP, object: snpObject, query: querySNP, model: snpModel},
}

// Technologies returns the names that a spec may give.
func Technologies() []string {
	var names []string
	for _, t := range technologies {
		names = append(names, t.name)
	}
	return names
}

func technologyByName(name string) (technology, bool) {
	i := slices.IndexFunc(technologies, func(t technology) bool { return t.name == name })
	if i < 0 {
		return technology{}, false
	}
	return technologies[i], true
}

func validatePlain(s *Spec) error {
	c := s.Confidential
	if len(c.Policy) > 0 || c.KernelHashes != nil && *c.KernelHashes || c.OwnerCert != "" || c.Session != "" || c.IDBlock != "" || c.IDAuth != "" || c.HostData != "" {
		return s.errorf("confidential", `technology = "none" takes no policy, kernel-hashes, owner-cert, session, id-block, id-auth or host-data`)
	}
	if s.Latch.Until != UntilNone {
		return s.errorf("latch.until", "%q: a plain VM is not measured, so nothing can open a latch", s.Latch.Until)
	}
	return nil
}

func validateSEV(s *Spec) error {
	c := s.Confidential
	p, err := s.Policy()
	if err != nil {
		return s.errorf("confidential.policy", "%v", err)
	}
	switch {
	case p&sev.PolicyES != 0:
		return s.errorf("confidential.policy", `es: SEV-ES is not supported in this version; technology = "sev" encrypts memory only`)
	case p&sev.PolicyNoDebug == 0:
		return s.errorf("confidential.policy", "lacks no-debug: the host could read and change the guest's memory through debug commands")
	case c.IDBlock != "" || c.IDAuth != "" || c.HostData != "":
		return s.errorf("confidential", `id-block, id-auth and host-data are for technology = "sev-snp"`)
	case (c.OwnerCert == "") != (c.Session == ""):
		return s.errorf("confidential", "owner-cert and session go together: both come from one latchkey session")
	}
	if err := validateConfidential(s); err != nil {
		return err
	}
	return validateSEVLatch(s)
}

// validateConfidential checks what all confidential guests share.
func validateConfidential(s *Spec) error {
	switch {
	case !strings.HasPrefix(s.Machine, "q35") && !strings.HasPrefix(s.Machine, "pc-q35"):
		return s.errorf("machine", "%q: confidential guests need q35", s.Machine)
	case s.Accel == "tcg":
		return s.errorf("accel", "tcg cannot encrypt memory; to try the launch without hardware, start with --emulate")
	case s.Firmware.Vars != "":
		return s.errorf("firmware.vars", "a variable store is not measured: the host could change what the guest boots")
	case s.Firmware.Image == "" && len(s.Firmware.Features) == 0:
		return s.errorf("firmware", `a SEV guest needs firmware that knows SEV: give image, or features = ["amd-sev"]`)
	case s.KernelHashes() && s.Kernel.Image == "":
		return s.errorf("confidential.kernel-hashes", "there is no kernel to measure")
	}
	return nil
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
	return &rundir.SEV{Policy: want, Inputs: p.inputs(), Build: sev.Build{Major: answer.APIMajor, Minor: answer.APIMinor, Build: answer.BuildID}}, nil
}

// sevObject adds the sev-guest object (QEMU, qapi/qom.json, SevGuestProperties).
func sevObject(b *builder) error {
	policy, err := b.spec.Policy()
	if err != nil {
		return err
	}
	props := map[string]any{
		"qom-type": "sev-guest", "id": "sev0",
		"cbitpos": b.facts.CBitPos, "reduced-phys-bits": 1, "policy": uint32(policy),
	}
	if c := b.spec.Confidential; c.Session != "" {
		props["dh-cert-file"], props["session-file"] = c.OwnerCert, c.Session
	}
	if b.spec.KernelHashes() {
		props["kernel-hashes"] = true
	}
	b.opt("-object", argv.JSON(props))
	b.machine.Set("confidential-guest-support", "sev0")
	b.choose("policy", policy.String(), b.spec.From("confidential.policy"))
	return nil
}
