package tee

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/spec"
	"github.com/vmlatch/vmlatch/qmp"
)

// snp is SEV-SNP.
type snp struct{ base }

// snpKeys are the keys of [confidential] for SEV-SNP.
type snpKeys struct {
	IDBlock  string `toml:"id-block"`  // file of base64
	IDAuth   string `toml:"id-auth"`   // file of base64
	HostData string `toml:"host-data"` // 32 bytes in hex
	ForSNP   Only   `toml:"sev-snp"`
}

// Keys of the owner's files.
const (
	idBlock = "id-block"
	idAuth  = "id-auth"
)

func (snp) keys(c *Confidential) []key {
	return []key{
		policyKey(c), fileKey(idBlock, &c.IDBlock), fileKey(idAuth, &c.IDAuth), textKey("host-data", c.HostData),
	}
}

func (snp) only(c *Confidential) *Only { return &c.ForSNP }

// ownerFile is a small file of the guest's owner.
type ownerFile struct {
	key, path string
	limit     int64 // in bytes
}

// ownerFiles lists those whose content decides over the plan.
func (c *Confidential) ownerFiles() []ownerFile {
	if c.IDBlock == "" || c.IDAuth == "" {
		return nil
	}
	return []ownerFile{{idBlock, c.IDBlock, 1 << 10}, {idAuth, c.IDAuth, 16 << 10}}
}

// snpGuest is QEMU's object (qapi/qom.json, SevSnpGuestProperties).
func snpGuest() plan.Object { return plan.Object{Type: "sev-snp-guest", Since: "9.1"} }

func (snp) traits() plan.Traits {
	return plan.Traits{
		Name: host.SNP, Object: snpGuest(), Feature: "amd-sev-snp", Vendor: amd, Pool: "sev-es",
		Confidential: true, Attested: true, KernelHashes: true, KernelLog: true, Private: true, Registers: true,
		Models: measuredModels(), ModelMeasured: true, Device: secureProcessor,
	}
}

func snpPolicy(words []string) (sev.SNPPolicy, error) {
	if len(words) == 0 {
		return sev.SNPPolicyDefault, nil
	}
	return sev.ParseSNPPolicy(strings.Join(words, ","))
}

func (snp) parse(words []string) error {
	_, err := sev.ParseSNPPolicy(strings.Join(words, ","))
	return err
}

func (snp) complete(g *Guest) error {
	c, f := &g.Confidential, g.File
	if g.Latch.Until == "" && c.IDBlock != "" && g.Broker.Connect == "" {
		g.Latch.Until = plan.UntilIDBlock
	}
	if _, err := snpPolicy(c.Policy); err != nil {
		return f.Errorf("confidential.policy", "%v", err)
	}
	if (c.OwnerCert != "" || c.Session != "") && !g.Several() {
		return f.Errorf("confidential.session", "SEV-SNP has no sessions:"+
			" bind the launch with id-block and id-auth (latchkey idblock)")
	}
	if _, err := hexBytes(c.HostData, 32); err != nil {
		return f.Errorf("confidential.host-data", "%v", err)
	}
	if err := g.confidential(); err != nil {
		return err
	}
	if done, err := g.latchEvidence(); done {
		return err
	}
	switch l := g.Latch; {
	case l.Until == plan.UntilIDBlock && len(l.Owner) == 0 && c.IDBlock == "":
		return f.Errorf("latch.until",
			"id-block: none is given; without it the platform compares the launch with nothing")
	case l.Until == plan.UntilIDBlock && len(l.Owner) == 0:
		return nil
	case l.Until != "" && l.Until != plan.UntilSecret && l.Until != plan.UntilNothing && l.Until != plan.UntilIDBlock:
		return f.Errorf("latch.until", `%q: must be "evidence", "id-block" or "nothing"`, l.Until)
	}
	return g.latchNothing(`SEV-SNP shows no measurement while the guest is paused;` +
		` write until = "id-block" and give one, or name a broker that judges reports from inside the guest ([broker])`)
}

func (snp) lacks(img *ovmf.Image) string {
	s, err := img.SEVMetadata()
	if err != nil || len(s) == 0 {
		return "it has no SEV metadata"
	}
	return ovmf.AcceptsSNP(s)
}

func (snp) satisfy(g *Guest, words []string, d *spec.Demands) error {
	least, err := sev.ParseSNPPolicy(strings.Join(words, ","))
	have, err2 := snpPolicy(g.Confidential.Policy)
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	if !have.Covers(least) {
		return g.conflict("confidential.policy", have.String(), d, "policy."+host.SNP, least.String())
	}
	return nil
}

func (snp) build(g *Guest, b *plan.Builder) error {
	c := g.Confidential
	policy, err := snpPolicy(c.Policy)
	if err != nil {
		return err
	}
	props := amdObject(g, b)
	props["policy"] = uint64(policy)
	data, err := hexBytes(c.HostData, 32)
	if err != nil {
		return err
	}
	if data != nil {
		props["host-data"] = base64.StdEncoding.EncodeToString(data)
	}
	if b.Facts.IGVM && (c.IDBlock != "" || g.Latch.Until == plan.UntilIDBlock) {
		return g.File.Errorf("confidential."+idBlock, "QEMU takes policy and ID block from the IGVM file"+
			" and drops the ones it was given: this launch would be compared with nothing")
	}
	if c.IDBlock != "" {
		if err := bindIDBlock(g, b.Facts, policy, props); err != nil {
			return err
		}
		b.Choose(idBlock, c.IDBlock, g.File.From("confidential."+idBlock))
		b.Covers("guest policy (by the ID block)")
	}
	b.Choose("policy", policy.String(), g.File.From("confidential.policy"))
	return b.Protect(snpGuest(), props)
}

// bindIDBlock checks both files and adds them; the platform would refuse them too,
// but only when the guest is let run.
func bindIDBlock(g *Guest, f *plan.Facts, policy sev.SNPPolicy, props map[string]any) error {
	block, auth := f.OwnerFiles[idBlock], f.OwnerFiles[idAuth]
	id, err := sev.ParseIDBlock(block)
	if err != nil {
		return g.File.Unusable(idBlock, err)
	}
	author := sev.HasAuthor(auth)
	if _, err := sev.VerifyIDAuth(id, auth, author); err != nil {
		return g.File.Unusable(idAuth, err)
	}
	if id.Policy != uint64(policy) {
		return g.File.Errorf("confidential.policy", "%v: the id block was signed for %v", policy,
			sev.SNPPolicy(id.Policy))
	}
	props["id-block"], props["id-auth"] = base64.StdEncoding.EncodeToString(block), base64.StdEncoding.EncodeToString(
		auth)
	if author {
		props["author-key-enabled"] = true
	}
	return nil
}

// query checks that QEMU launches what was asked for. The digest comes into being only
// when the guest is let run.
func (snp) query(ctx context.Context, g *Guest, p *plan.Plan, q qmp.Executor) (*rundir.SEV, error) {
	answer, err := qmp.QuerySEV{}.Execute(ctx, q)
	if err != nil {
		return nil, err
	}
	want, err := snpPolicy(g.Confidential.Policy)
	switch {
	case err != nil:
		return nil, err
	case !answer.Enabled || answer.Type != "sev-snp":
		return nil, errors.New("QEMU runs, but says that SEV-SNP is not enabled")
	case answer.SNPPolicy != uint64(want):
		return nil, fmt.Errorf("QEMU launched the guest with policy %#x instead of %#x", answer.SNPPolicy, uint64(want))
	}
	return amdRecord(p, answer, rundir.SEV{SNPPolicy: want}), nil
}

func isSNP(s *Subject) bool { return s.Traits().Name == host.SNP }

// snpAllows reports whether the policy has none of the bits.
func snpAllows(bits sev.SNPPolicy, format string) func(*Subject) (Verdict, string) {
	return func(s *Subject) (Verdict, string) {
		p, _ := snpPolicy(s.Confidential.Policy) // was read before
		return Verify(p&bits == 0, "%s", format)
	}
}

func (snp) checks() []Check {
	return append([]Check{
		{
			ID:       "id-block-pair",
			Severity: Refuse,
			Key:      "confidential",
			When:     isSNP,
			Cause:    "id-block and id-auth go together",
			Fix:      `take both from one "latchkey idblock make"`,
			Source:   "QEMU, qapi/qom.json, SevSnpGuestProperties",
			Look: func(s *Subject) (Verdict, string) {
				c := s.Confidential
				return Verify((c.IDBlock == "") == (c.IDAuth == ""),
					"id-block and id-auth go together: both come from one latchkey idblock make")
			},
		},
		{
			ID:       "snp-policy-debug",
			Severity: Refuse,
			Key:      "confidential.policy",
			When:     isSNP,
			Cause:    "the policy allows debugging: the host could read and change the guest's memory",
			Fix:      `take "debug" out of policy`,
			Source:   "SNP ABI, chapter 4.3, table 9; Linux, SNP policy mask",
			Look: snpAllows(sev.SNPPolicyDebug,
				"debug: the host could read and change the guest's memory through debug commands"),
		},
		{
			ID:       "snp-policy-migration",
			Severity: Refuse,
			Key:      "confidential.policy",
			When:     isSNP,
			Cause: "the policy allows a migration agent, which could take the guest's memory elsewhere;" +
				" QEMU has none",
			Fix:    `take "migrate" out of policy`,
			Source: "SNP ABI, chapter 4.3, table 9",
			Look: snpAllows(sev.SNPPolicyMigrate,
				"migrate: a migration agent could take the guest's memory elsewhere"),
		},
		{
			ID:       "id-block-size",
			Severity: Refuse,
			Stage:    PlanStage,
			Key:      "confidential.id-block",
			When:     func(s *Subject) bool { return isSNP(s) && s.Confidential.IDBlock != "" },
			Cause:    "an ID block has 96 bytes and its authentication 4096, exactly",
			Fix:      `make them again: "latchkey idblock make"`,
			Source:   "QEMU, qapi/qom.json; SNP ABI, chapters 8.17 and 8.18",
			Look: func(s *Subject) (Verdict, string) {
				a, b := len(s.Facts.OwnerFiles[idBlock]), len(s.Facts.OwnerFiles[idAuth])
				return Verify(a == 96 && b == 4096, "%d and %d bytes", a, b)
			},
		},
	}, slices.Concat(snpHostChecks(), igvmChecks())...)
}

// snpHostChecks are about the host.
func snpHostChecks() []Check {
	when := OnHardware(isSNP)
	return []Check{
		{
			ID:       "snp-policy-smt",
			Severity: Refuse,
			Stage:    HostStage,
			Key:      "confidential.policy",
			When:     when,
			Cause:    "the policy forbids simultaneous multithreading, and the host has it on",
			Fix:      `add "smt" to policy, or switch SMT off in the machine's setup`,
			Source:   "SNP ABI, chapter 4.3; AMDSEV#240",
			Look: func(s *Subject) (Verdict, string) {
				if p, _ := snpPolicy(s.Confidential.Policy); p&sev.SNPPolicySMT != 0 {
					return OK, ""
				}
				return Answered(s.Facts.Host.SMT, host.No, "")
			},
		},
		{
			ID:       "snp-policy-support",
			Severity: Warn,
			Stage:    HostStage,
			Key:      "confidential.policy",
			When:     when,
			Cause:    "the policy demands ciphertext hiding, and KVM has no address-space IDs for it",
			Fix:      "load kvm_amd with ciphertext_hiding_asids=N, or lower the policy if its owner agrees",
			Source:   "Linux, kvm-amd.ciphertext_hiding_asids; libvirt formatdomain",
			Look: func(s *Subject) (Verdict, string) {
				p, _ := snpPolicy(s.Confidential.Policy)
				return Verify(p&sev.SNPPolicyCiphertextHiding == 0 || s.Facts.Host.SEV.CiphertextHiding > 0, "")
			},
		},
		{
			ID:       "snp-iommu",
			Severity: Refuse,
			Stage:    HostStage,
			When:     when,
			Cause:    "SEV-SNP needs an IOMMU that translates: devices could reach guest memory",
			Fix:      "enable the IOMMU in the machine's setup, and boot without iommu=pt",
			Source:   "Linux, drivers/iommu/amd; AMDSEV README",
			Look: func(s *Subject) (Verdict, string) {
				i := s.Facts.Host.IOMMU
				if i.Present == host.No || i.Passthrough == host.Yes {
					return Failed, fmt.Sprintf("present: %s, pass-through: %s", i.Present, i.Passthrough)
				}
				return Answered(i.Passthrough, host.No, "")
			},
		},
		{
			ID:       "snp-firmware",
			Severity: Refuse,
			Stage:    HostStage,
			When:     when,
			Cause:    "the secure processor's firmware is older than 1.51",
			Fix:      "update it (the package with AMD's SEV firmware, or the machine's)",
			Source:   "AMDSEV README; kubevirt",
			Look: func(s *Subject) (Verdict, string) {
				api := s.Facts.Host.SEV.SNPAPI
				var major, minor int
				if n, _ := fmt.Sscanf(api, "%d.%d", &major, &minor); n != 2 {
					return Unknown, "the kernel's log cannot be read, or does not say"
				}
				return Verify(major > 1 || major == 1 && minor >= 51, "%s", api)
			},
		},
		{
			ID:       "snp-kernel",
			Severity: Refuse,
			Stage:    HostStage,
			When:     when,
			Cause:    "SEV-SNP guests need Linux 6.11 or newer on the host",
			Fix:      newerKernel,
			Source:   "Linux 6.11; AMDSEV README",
			Look: func(s *Subject) (Verdict, string) {
				return Verify(s.Facts.Host.KernelAtLeast(6, 11), "%s", s.Facts.Host.Kernel)
			},
		},
		{
			ID:       "ciphertext-hiding",
			Severity: Warn,
			Stage:    HostStage,
			When:     when,
			Cause:    "the host can read the guest's ciphertext, and learn from how it changes",
			Fix:      "on processors that have ciphertext hiding, load kvm_amd with ciphertext_hiding_asids=N",
			Source:   "snphost ok; Linux 6.18",
			Look:     func(s *Subject) (Verdict, string) { return Verify(s.Facts.Host.SEV.CiphertextHiding > 0, "") },
		},
	}
}
