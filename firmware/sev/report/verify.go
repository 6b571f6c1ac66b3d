package report

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/sha512"
	"math/big"
	"time"

	"github.com/vmlatch/vmlatch/firmware/internal/octets"
	"github.com/vmlatch/vmlatch/firmware/pki"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
)

// Evidence is what a report is judged by. None of it is trusted: it is believed only
// as far as AMD's root has signed it.
type Evidence struct {
	Report *Report
	EK     *kds.Certificate // of the key that signed the report
	CRLs   []*kds.CRL       // what any of them has revoked is revoked; one at least must be valid
	Roots  *kds.Roots
}

// Verify checks that a report is genuine at a time, and then the owner's demands. The error is
// the refusal of the first check that fails.
func (e *Evidence) Verify(asOf time.Time, p *Policy) error {
	if err := e.Genuine(asOf, p); err != nil {
		return err
	}
	return p.Check(e.Report, e.EK)
}

// Genuine is the first half of Verify. Of a policy only what it says of revocation lists counts.
func (e *Evidence) Genuine(asOf time.Time, p *Policy) error {
	for _, check := range []func() error{
		e.Report.Form,
		e.certificate,
		func() error { return e.Roots.Chain(e.EK, asOf) },
		func() error { return e.revocation(asOf, p) },
		e.signature,
		e.consistent,
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// certificate checks that the certificate is of the report's kind and line.
func (e *Evidence) certificate() error {
	r, c := e.Report, e.EK
	if c == nil {
		return refusal.New(refusal.EKMissing)
	}
	if c.Signer != r.Signer() {
		return refusal.New(refusal.KeyType).Value("SIGNING_KEY", r.Signer().String(), c.Signer.String())
	}
	if r.Version < versionWithCPUID {
		return nil // it names no processor: the certificate does
	}
	l, ok := r.Line()
	if !ok {
		return refusal.New(refusal.ProductUnknown).Because("family %#x, model %#x", r.Family, r.Model)
	}
	if l != c.Line {
		return refusal.New(refusal.ProductMismatch).Because("the report is of %s, the certificate of %s", l, c.Line)
	}
	return nil
}

func (e *Evidence) revocation(asOf time.Time, p *Policy) error {
	if len(e.CRLs) == 0 {
		if p.RequireCRL {
			return refusal.New(refusal.CRLMissing).Because("of ARK-%s", e.EK.Line)
		}
		return nil
	}
	var invalid, revoked error
	for _, x := range e.CRLs {
		invalid = pki.CRLValidAt(x.X509, asOf, p.CRLStale)
		if invalid == nil {
			break
		}
	}
	for _, x := range e.CRLs { // one that is too old to trust still tells what it revoked
		err := e.Roots.NotRevoked(e.EK, x)
		if r := refusal.Of(err); r != nil && r.Reason == refusal.Revoked {
			revoked = cmp.Or(revoked, err)
		} else if err != nil {
			return err
		}
	}
	return cmp.Or(invalid, revoked)
}

// CRLUntil is until when a list is valid by which the report is judged; zero for none.
func (e *Evidence) CRLUntil() (until time.Time) {
	for _, x := range e.CRLs {
		if x.X509.NextUpdate.After(until) {
			until = x.X509.NextUpdate
		}
	}
	return until
}

// signature checks the report's own signature (SNP ABI, chapter 10, tables 135 and 136: both
// numbers are little-endian).
func (e *Evidence) signature() error {
	raw := &e.Report.Raw
	number := func(off int) *big.Int { return octets.Number(raw[off : off+48]) }
	sum := sha512.Sum384(raw[:offSignature])
	if ecdsa.Verify(e.EK.Key, sum[:], number(offSignature), number(offS)) {
		return nil
	}
	err := refusal.New(refusal.Signature)
	if !e.Report.MayBeBy(e.EK) {
		err.Text = "the certificate is for another chip or TCB than the report's, so the signature does not fit"
		err.Fix = "give the certificate for this report: latchkey bundle urls --report FILE"
	}
	return err
}

// consistent holds what the report says against the certificate, and against itself.
func (e *Evidence) consistent() error {
	r, c := e.Report, e.EK
	tcb := func(raw uint64) kds.TCB { return kds.ParseTCB(raw, c.Line) }
	reported, current, committed := tcb(r.ReportedTCB), tcb(r.CurrentTCB), tcb(r.CommittedTCB)
	if reported != c.TCB {
		return refusal.New(refusal.TCBMismatch).Value("REPORTED_TCB", reported.Text(c.Line), c.TCB.Text(c.Line))
	}
	if c.Signer == kds.VCEK && !octets.AllZero(r.ChipID[:]) {
		n := len(c.HWID)
		if !bytes.Equal(r.ChipID[:n], c.HWID) || !octets.AllZero(r.ChipID[n:]) {
			return refusal.New(refusal.ChipMismatch).Differs("CHIP_ID", r.ChipID[:n], c.HWID)
		}
	}
	for _, t := range []struct {
		name string
		tcb  kds.TCB
	}{{"REPORTED_TCB", reported}, {"COMMITTED_TCB", committed}} {
		if below := current.Below(t.tcb); below.Name != "" {
			return refusal.New(refusal.TCBInconsistent).Because("%s: %s is %d, and %d in CURRENT_TCB", t.name,
				below.Name, below.In(t.tcb), below.In(current))
		}
	}
	return nil
}

// MayBeBy reports whether a certificate may be that of the key which signed the report: it is of
// its kind, for its TCB, and of its chip unless that is masked.
func (r *Report) MayBeBy(c *kds.Certificate) bool {
	return c.Signer == r.Signer() && kds.ParseTCB(r.ReportedTCB, c.Line) == c.TCB &&
		(octets.AllZero(r.ChipID[:]) || c.Signer != kds.VCEK || bytes.HasPrefix(r.ChipID[:], c.HWID))
}

// SignedBy reports whether the report's signature is by a certificate's key.
func (r *Report) SignedBy(c *kds.Certificate) bool {
	return (&Evidence{Report: r, EK: c}).signature() == nil
}
