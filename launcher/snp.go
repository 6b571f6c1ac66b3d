package launcher

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/qmp"
)

// SNPPolicy is the guest policy of a SEV-SNP guest.
func (s *Spec) SNPPolicy() (sev.SNPPolicy, error) {
	if len(s.Confidential.Policy) == 0 {
		return sev.SNPPolicyDefault, nil
	}
	return sev.ParseSNPPolicy(strings.Join(s.Confidential.Policy, ","))
}

func validateSNP(s *Spec) error {
	c := s.Confidential
	if _, err := s.SNPPolicy(); err != nil {
		return s.errorf("confidential.policy", "%v", err)
	}
	if c.OwnerCert != "" || c.Session != "" {
		if len(s.asked) == 1 {
			return s.errorf("confidential.session", "SEV-SNP has no sessions: bind the launch with id-block and id-auth (latchkey idblock)")
		}
	}
	if _, err := hexBytes(c.HostData, 32); err != nil {
		return s.errorf("confidential.host-data", "%v", err)
	}
	if err := validateConfidential(s); err != nil {
		return err
	}
	if s.Latch.Until == UntilIDBlock && len(s.Latch.Owner) == 0 {
		if c.IDBlock == "" {
			return s.errorf("latch.until", "id-block: there is none; without it the platform compares the launch with nothing")
		}
		return nil
	}
	if s.Latch.Until != "" && s.Latch.Until != UntilSecret && s.Latch.Until != UntilNothing && s.Latch.Until != UntilIDBlock {
		return s.errorf("latch.until", `%q: must be "id-block" or "nothing"`, s.Latch.Until)
	}
	return s.latchOnly(`SEV-SNP shows no measurement while the guest is paused; write until = "id-block" and give one, or only reports from inside the guest tell`)
}

// hexBytes reads n bytes of hex; nil for "".
func hexBytes(s string, n int) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != n {
		return nil, fmt.Errorf("must be %d bytes in hex", n)
	}
	return b, nil
}

// snpObject adds the sev-snp-guest object (QEMU, qapi/qom.json, SevSnpGuestProperties).
func snpObject(b *builder) error {
	policy, err := b.spec.SNPPolicy()
	if err != nil {
		return err
	}
	c := b.spec.Confidential
	props := map[string]any{"cbitpos": b.facts.cBitPos(), "reduced-phys-bits": reducedPhysBits, "policy": uint64(policy)}
	if data, err := hexBytes(c.HostData, 32); err != nil {
		return err
	} else if data != nil {
		props["host-data"] = base64.StdEncoding.EncodeToString(data)
	}
	if b.spec.KernelHashes() {
		props["kernel-hashes"] = true
	}
	if c.IDBlock != "" {
		if err := bindIDBlock(b.spec, &b.facts, policy, props); err != nil {
			return err
		}
		b.choose("id-block", c.IDBlock, b.spec.From("confidential.id-block"))
	}
	b.choose("policy", policy.String(), b.spec.From("confidential.policy"))
	return b.addObject("sev-snp-guest", props)
}

// readIDBlock reads the owner's files, of a few kilobytes.
func (f *Facts) readIDBlock(s *Spec) (err error) {
	c := s.Confidential
	if c.IDBlock == "" || c.IDAuth == "" {
		return nil
	}
	if f.IDBlock, err = readBase64(c.IDBlock, 1<<10); err != nil {
		return &FileError{Use: "id-block", Err: err, Spec: s.file}
	}
	if f.IDAuth, err = readBase64(c.IDAuth, 16<<10); err != nil {
		return &FileError{Use: "id-auth", Err: err, Spec: s.file}
	}
	return nil
}

// bindIDBlock checks both files and adds them; the platform would refuse them too,
// but only when the guest is let run.
func bindIDBlock(s *Spec, f *Facts, policy sev.SNPPolicy, props map[string]any) error {
	id, err := sev.ParseIDBlock(f.IDBlock)
	if err != nil {
		return &FileError{Use: "id-block", Err: err, Spec: s.file}
	}
	author := sev.HasAuthor(f.IDAuth)
	if _, err := sev.VerifyIDAuth(id, f.IDAuth, author); err != nil {
		return &FileError{Use: "id-auth", Err: err, Spec: s.file}
	}
	if id.Policy != uint64(policy) {
		return s.errorf("confidential.policy", "%v: the id block was signed for %v", policy, sev.SNPPolicy(id.Policy))
	}
	props["id-block"], props["id-auth"] = base64.StdEncoding.EncodeToString(f.IDBlock), base64.StdEncoding.EncodeToString(f.IDAuth)
	if author {
		props["author-key-enabled"] = true
	}
	return nil
}

func readBase64(file string, limit int64) ([]byte, error) {
	f, err := openRegular(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := readAtMost(f, limit)
	if err != nil {
		return nil, err
	}
	b, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return b, nil
}

// querySNP checks that QEMU launches what was asked for. The digest comes into
// being only when the guest is let run.
func querySNP(ctx context.Context, conn *qmp.Conn, p *Plan) (*rundir.SEV, error) {
	answer, err := qmp.QuerySEV{}.Execute(ctx, conn)
	if err != nil {
		return nil, err
	}
	want, err := p.spec.SNPPolicy()
	if err != nil {
		return nil, err
	}
	switch {
	case !answer.Enabled || answer.Type != "sev-snp":
		return nil, errors.New("QEMU runs, but says that SEV-SNP is not enabled")
	case answer.SNPPolicy != uint64(want):
		return nil, fmt.Errorf("QEMU launched the guest with policy %#x instead of %#x", answer.SNPPolicy, uint64(want))
	}
	return p.sevRecord(answer, rundir.SEV{SNPPolicy: want}), nil
}
