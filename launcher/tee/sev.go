package tee

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/spec"
	"github.com/vmlatch/vmlatch/qmp"
)

// sevs are SEV and SEV-ES.
type sevs struct {
	base
	es bool // registers are protected, too
}

// sevKeys are the keys of [confidential] for SEV and SEV-ES.
type sevKeys struct {
	OwnerCert string `toml:"owner-cert"`
	Session   string `toml:"session"`
	VMSA      string `toml:"vmsa"` // init2 or legacy; "" is chosen
	ForSEV    Only   `toml:"sev"`
	ForSEVES  Only   `toml:"sev-es"`
}

func (sevs) keys(c *Confidential) []key {
	return []key{
		policyKey(c), fileKey("owner-cert", &c.OwnerCert), fileKey("session", &c.Session), textKey("vmsa", c.VMSA),
	}
}

func (t sevs) only(c *Confidential) *Only {
	if t.es {
		return &c.ForSEVES
	}
	return &c.ForSEV
}

// sevGuest is QEMU's object (qapi/qom.json, SevGuestProperties).
func sevGuest() plan.Object {
	return plan.Object{Type: "sev-guest", Since: "2.12", Properties: map[string]string{
		"kernel-hashes": "6.2", "legacy-vm-type": "9.1",
	}}
}

func (t sevs) traits() plan.Traits {
	traits := plan.Traits{
		Name: host.SEV, Object: sevGuest(), Feature: "amd-sev", Vendor: amd, Pool: "sev",
		Confidential: true, Attested: true, Measurable: true, KernelHashes: true, Pinned: true,
		Device: secureProcessor,
		Covers: []string{"guest policy", "platform firmware version"}, // by the MAC, besides the digest
	}
	if t.es {
		traits.Name, traits.Feature, traits.Pool = host.SEVES, "amd-sev-es", "sev-es"
		traits.Registers, traits.Models, traits.ModelMeasured = true, measuredModels(), true
	}
	return traits
}

// policy is the guest policy.
func (t sevs) policy(words []string) (p sev.Policy, err error) {
	p = sev.PolicyDefault
	if len(words) > 0 {
		if p, err = sev.ParsePolicy(strings.Join(words, ",")); err != nil {
			return 0, err
		}
	}
	if t.es {
		p |= sev.PolicyES
	}
	return p, nil
}

func (t sevs) parse(words []string) error {
	_, err := sev.ParsePolicy(strings.Join(words, ","))
	return err
}

// Ways in which KVM sets up a SEV guest. They start SEV-ES guests with different
// registers, which are measured.
const (
	vmsaINIT2  = "init2"  // KVM_SEV_INIT2 (Linux 6.10, QEMU 9.1)
	vmsaLegacy = "legacy" // KVM_SEV_INIT, KVM_SEV_ES_INIT
)

func (t sevs) complete(g *Guest) error {
	c, f := &g.Confidential, g.File
	if g.Latch.Until == "" && (c.Session != "" || g.Broker.Connect != "") {
		g.Latch.Until = plan.UntilSecret
	}
	p, err := t.policy(c.Policy)
	switch {
	case err != nil:
		return f.Errorf("confidential.policy", "%v", err)
	case p&sev.PolicyES != 0 && !t.es:
		return f.Errorf("confidential.policy", `es: write technology = "sev-es"; "sev" encrypts memory only`)
	case c.VMSA != "":
		if err := plan.OneOf(f, "confidential.vmsa", c.VMSA, vmsaINIT2, vmsaLegacy); err != nil {
			return err
		}
	}
	if err := g.confidential(); err != nil {
		return err
	}
	switch l := g.Latch; {
	case g.Broker.Connect != "" && c.Session != "":
		return f.Errorf("broker", "the broker gives a session for each launch: leave owner-cert and session out")
	case g.Broker.Connect != "" && l.Until == plan.UntilNothing:
		return f.Errorf("broker", `not used with until = "nothing"`)
	case g.Broker.Connect != "" && len(l.Owner) > 0:
		return f.Errorf("latch.owner", "not used with a broker")
	case l.Until == plan.UntilSecret && c.Session == "" && g.Broker.Connect == "":
		return f.Errorf("latch.until", "secret: without a session there are no keys that could authenticate one")
	case l.Until == plan.UntilNothing && len(l.Owner) > 0:
		return f.Errorf("latch.owner", `not used with until = "nothing"`)
	case l.Until == "":
		return f.Errorf("latch.until", `without a session the launch cannot be verified;`+
			` write until = "nothing" to accept that`)
	case l.Until != plan.UntilSecret && l.Until != plan.UntilNothing:
		return f.Errorf("latch.until", `%q: must be "secret" or "nothing"`, l.Until)
	}
	return nil
}

func (t sevs) lacks(img *ovmf.Image) string {
	if _, ok, _ := img.ResetEIP(); t.es && !ok {
		return "it has no SEV-ES reset block"
	}
	return ""
}

// second refuses both on a host that runs SEV-SNP: they are not taken by choice there.
func (t sevs) second(g *Guest, f *plan.Facts) error {
	if f.Emulated() || f.Host.SEV == nil || f.Host.SEV.SNPEnabled != host.Yes {
		return nil
	}
	name := t.traits().Name
	return &fault.Error{
		Kind: fault.Host, Op: "take " + name + " by choice",
		Err: errors.New("the host runs SEV-SNP, next to which it does not count as secure"),
		Fix: "use sev-snp, or name " + name + " alone",
	}
}

func (t sevs) satisfy(g *Guest, words []string, d *spec.Demands) error {
	least, err := sev.ParsePolicy(strings.Join(words, ","))
	have, err2 := t.policy(g.Confidential.Policy)
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	if !have.Covers(least) {
		return g.conflict("confidential.policy", have.String(), d, "policy."+t.traits().Name, least.String())
	}
	return nil
}

func (t sevs) build(g *Guest, b *plan.Builder) error {
	policy, err := t.policy(g.Confidential.Policy)
	if err != nil {
		return err
	}
	props := amdObject(g, b)
	props["policy"] = uint32(policy)
	if c := g.Confidential; c.Session != "" {
		props["dh-cert-file"] = b.Whole(c.OwnerCert, "owner-cert", true)
		props["session-file"] = b.Whole(c.Session, "session", true)
		b.Read(c.OwnerCert, "owner-cert")
		b.Read(c.Session, "session")
	} else if g.FromBroker() {
		props["dh-cert-file"] = b.Whole(b.InDir(rundir.OwnerCertFile), "owner-cert", true)
		props["session-file"] = b.Whole(b.InDir(rundir.SessionFile), "session", true)
		b.Choose("session", "of the broker at "+g.Broker.Connect, "the broker, for each launch")
	}
	if err := vmType(g, b, props); err != nil {
		return err
	}
	b.Choose("policy", policy.String(), g.File.From("confidential.policy"))
	return b.Protect(sevGuest(), props)
}

// vmType always says how KVM sets up the guest: QEMU's own choice depends on its
// version and on the kernel's, and shows in a SEV-ES guest's measurement.
func vmType(g *Guest, b *plan.Builder, props map[string]any) error {
	const property = "legacy-vm-type"
	want, from := g.Confidential.VMSA, g.File.From("confidential.vmsa")
	f := b.Facts
	known := f.Info != nil && f.Info.HasObject(sevGuest().Type, property)
	if want == "" {
		switch {
		case !known:
			want, from = vmsaLegacy, "this QEMU knows no other"
		case f.Emulated():
			want, from = vmsaINIT2, "the emulated platform has it"
		case f.Host.SEV != nil && f.Host.SEV.INIT2 == host.Yes:
			want, from = vmsaINIT2, "KVM has it"
		default:
			want, from = vmsaLegacy, "KVM is older than Linux 6.10, or cannot be asked"
		}
	}
	if known {
		props[property] = map[string]string{vmsaINIT2: "off", vmsaLegacy: "on"}[want]
	} else if want == vmsaINIT2 {
		return f.Lacks("set up the guest with INIT2", sevGuest(), property)
	}
	b.Choose("vmsa", want, from)
	return nil
}

// sevMeasured is the state in which a guest waits for its secret (QEMU,
// qapi/misc-i386.json, SevState).
const sevMeasured = "launch-secret"

// query checks that the platform has measured what was asked for.
func (t sevs) query(ctx context.Context, g *Guest, p *plan.Plan, q qmp.Executor) (*rundir.SEV, error) {
	answer, err := qmp.QuerySEV{}.Execute(ctx, q)
	if err != nil {
		return nil, err
	}
	want, err := t.policy(g.Confidential.Policy)
	switch {
	case err != nil:
		return nil, err
	case !answer.Enabled:
		return nil, errors.New("QEMU runs, but says that SEV is not enabled")
	case answer.Policy != uint32(want):
		return nil, fmt.Errorf("QEMU launched the guest with policy %#x instead of %#x", answer.Policy, uint32(want))
	case answer.State != sevMeasured:
		return nil, fmt.Errorf("the platform did not measure the guest: its state is %s instead of %s", answer.State,
			sevMeasured)
	}
	return amdRecord(p, answer, rundir.SEV{Policy: want}), nil
}

// isSEV: for SEV and SEV-ES.
func isSEV(s *Subject) bool {
	_, is := s.tech.(sevs)
	return is
}

func isSEVES(s *Subject) bool {
	t, is := s.tech.(sevs)
	return is && t.es
}

func sevPolicy(s *Subject) sev.Policy {
	p, _ := sevs{es: isSEVES(s)}.policy(s.Confidential.Policy) // was read before
	return p
}

func (t sevs) checks() []Check {
	if t.es {
		return nil // they are SEV's, and apply to both
	}
	return append([]Check{
		{
			ID:       "sev-policy-debug",
			Severity: Refuse,
			Key:      "confidential.policy",
			When:     isSEV,
			Cause:    "the policy allows debugging: the host could read and change the guest's memory",
			Fix:      `add "no-debug" to policy`,
			Source:   "SEV API, chapter 3, table 2; libvirt formatdomain; nova",
			Look: func(s *Subject) (Verdict, string) {
				return Verify(sevPolicy(s)&sev.PolicyNoDebug != 0,
					"lacks no-debug: the host could read and change the guest's memory through debug commands")
			},
		},
		{
			ID:       "sev-policy-key-sharing",
			Severity: Warn,
			Key:      "confidential.policy",
			When:     isSEV,
			Cause:    "the policy lets other guests have the same key",
			Fix:      `add "no-key-sharing" to policy`,
			Source:   "SEV API, chapter 3, table 2; libvirt formatdomain",
			Look: func(s *Subject) (Verdict, string) {
				return Verify(sevPolicy(s)&sev.PolicyNoKeySharing != 0, "")
			},
		},
		{
			ID:       "sev-policy-send",
			Severity: Warn,
			Key:      "confidential.policy",
			When:     isSEV,
			Cause:    "the policy lets the host send the running guest to another platform",
			Fix:      `add "no-send" to policy`,
			Source:   "SEV API, chapter 3, table 2, and chapter 5, SEND_START",
			Look: func(s *Subject) (Verdict, string) {
				return Verify(sevPolicy(s)&sev.PolicyNoSend != 0, "")
			},
		},
		{
			ID:       "session-pair",
			Severity: Refuse,
			Key:      "confidential",
			When:     isSEV,
			Cause:    "owner-cert and session go together",
			Fix:      "take both from one latchkey session",
			Source:   "QEMU, qapi/qom.json, SevGuestProperties; AMDSEV#70",
			Look: func(s *Subject) (Verdict, string) {
				c := s.Confidential
				return Verify((c.OwnerCert == "") == (c.Session == ""),
					"owner-cert and session go together: both come from one latchkey session")
			},
		},
		{
			ID:       "es-on-snp-host",
			Severity: Warn,
			Stage:    HostStage,
			When:     OnHardware(isSEVES),
			Cause:    "the host runs SEV-SNP, and SEV-ES next to it does not count as secure",
			Fix:      `use technology = "sev-snp"`,
			Source:   "CVE-2025-48514; nova, host.py",
			Look:     func(s *Subject) (Verdict, string) { return Answered(s.Facts.Host.SEV.SNPEnabled, host.No, "") },
		},
		{
			ID:       "vmsa-features",
			Severity: Warn,
			Stage:    HostStage,
			When:     OnHardware(isSEVES),
			Cause:    "KVM sets a feature bit in the guest's registers (debug_swap), which is measured",
			Fix:      "measure with --features 0x20, or load kvm_amd with debug_swap=0",
			Source:   "AMDSEV#195; Linux, arch/x86/kvm/svm/sev.c",
			Look:     func(s *Subject) (Verdict, string) { return Verify(s.Facts.Host.SEV.DebugSwap != host.Yes, "") },
		},
		{
			ID:       "secret-area",
			Severity: Refuse,
			Stage:    PlanStage,
			Key:      "firmware",
			When:     func(s *Subject) bool { return isSEV(s) && s.Latch.Until == plan.UntilSecret },
			Cause:    "the firmware has no area for the secret that the latch waits for",
			Fix:      fault.FixAmdSev,
			Source:   "QEMU, docs/system/i386/amd-memory-encryption.rst; enarx/sev#35",
			Look: func(s *Subject) (Verdict, string) {
				return s.ReadImage(func(i *plan.Image) (Verdict, string) { return Verify(i.SecretArea, "") })
			},
		},
		{
			ID:       "session-files",
			Severity: Refuse,
			Stage:    PlanStage,
			Key:      "confidential.session",
			When:     func(s *Subject) bool { return isSEV(s) && s.Confidential.Session != "" },
			Cause:    "owner-cert or session cannot be read, or is not base64 of the expected length",
			Fix:      fault.FixSession,
			Source:   "QEMU, docs/system/i386/amd-memory-encryption.rst; SEV API, chapters 4.3 and 6.2",
			Look:     lookAtSession,
		},
		{
			ID:       "sev-policy-es",
			Severity: Default,
			Stage:    PlanStage,
			Key:      "confidential.policy",
			When:     isSEV,
			Cause:    "the policy's ES bit contradicts the technology",
			Fix:      Defect,
			Source:   "SEV API, chapter 3, table 2; nova 0x33, 0x37",
			Look: func(s *Subject) (Verdict, string) {
				c, _ := s.Options.Protection()
				n, _ := strconv.ParseUint(c.Props["policy"], 10, 32)
				return Verify((sev.Policy(n)&sev.PolicyES != 0) == isSEVES(s), "%#x", n)
			},
		},
		{
			ID:       "vm-type-explicit",
			Severity: Default,
			Stage:    PlanStage,
			Key:      "confidential.vmsa",
			When: func(s *Subject) bool {
				return isSEV(s) && s.Facts.Info.HasObject(sevGuest().Type, "legacy-vm-type")
			},
			Cause:  "QEMU would choose how KVM sets up the guest, which changes the measurement",
			Fix:    Defect,
			Source: "QEMU 9.1 notes; sev-snp-measure#48",
			Look: func(s *Subject) (Verdict, string) {
				c, _ := s.Options.Protection()
				v := c.Props["legacy-vm-type"]
				return Verify(v == "on" || v == "off", "%q", v)
			},
		},
	}, amdChecks()...)
}

func lookAtSession(s *Subject) (Verdict, string) {
	c := s.Confidential
	for _, f := range []struct {
		name string
		size int
	}{{c.OwnerCert, sev.CertificateSize}, {c.Session, sev.SessionSize}} {
		b, err := readBase64(f.name, 16<<10)
		if err != nil {
			return Failed, err.Error()
		}
		if len(b) != f.size {
			return Failed, fmt.Sprintf("%s: has %d bytes, must have %d", f.name, len(b), f.size)
		}
	}
	return OK, ""
}
