package bundle

import (
	"bytes"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence/pki"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
)

// Endorsement finds the certificate of the key that signed a report; nil if the bundle does not
// have it. Whether it may be believed is for the judgement to say.
func (b *Bundle) Endorsement(r *report.Report) *kds.Certificate {
	for _, p := range b.of(Endorsement) {
		if c, err := kds.ParseCertificate(p.Data); err == nil && r.SignedBy(c) {
			return c
		}
	}
	return nil
}

// CRL finds the list of a line that is valid at a time, or the last to expire; nil if there is
// none.
func (b *Bundle) CRL(l kds.Line, asOf time.Time) (best *kds.CRL) {
	for _, p := range b.of(AMDCRL) {
		c, err := kds.ParseCRL(p.Data)
		if err != nil || c.Line != l {
			continue
		}
		if best == nil ||
			better(asOf, c.X509.ThisUpdate, c.X509.NextUpdate, best.X509.ThisUpdate, best.X509.NextUpdate) {
			best = c
		}
	}
	return best
}

// better reports whether a part is of more use at a time than another: valid before invalid,
// then the one that lasts longer.
func better(at, from, until, otherFrom, otherUntil time.Time) bool {
	valid := func(from, until time.Time) bool { return !at.Before(from) && !at.After(until) }
	if v, o := valid(from, until), valid(otherFrom, otherUntil); v != o {
		return v
	}
	return until.After(otherUntil)
}

// Collateral puts together what a quote's platform is judged by; nil unless the bundle has all
// of it. Of several evaluations the highest that is valid at the time counts.
func (b *Bundle) Collateral(p *collateral.PCK, chain []byte, asOf time.Time) *collateral.Collateral {
	c := &collateral.Collateral{}
	info := b.tcbInfo(p, asOf)
	if info == nil {
		return nil
	}
	t, err := collateral.ParseTCBInfo(info.Data)
	if err != nil {
		return nil
	}
	qe := b.qeIdentity(t.Evaluation, asOf)
	if qe == nil {
		return nil
	}
	c.TCBInfo, c.TCBInfoChain, c.TCBInfoSig = info.Data, info.Chain, info.Signature
	c.QE, c.QEChain, c.QESig = qe.Data, qe.Chain, qe.Signature
	c.RootCRL = b.crlOf(RootCRL, nil, asOf)
	issuers, err := pki.ParsePEM(chain)
	if err != nil || len(issuers) < 2 {
		return nil
	}
	c.PCKCRL = b.crlOf(PCKCRL, issuers[1].RawSubject, asOf)
	if c.RootCRL == nil || c.PCKCRL == nil {
		return nil
	}
	return c
}

// crlOf finds the most useful list of an issuer.
func (b *Bundle) crlOf(k Kind, issuer []byte, asOf time.Time) (der []byte) {
	var from, until time.Time
	for _, p := range b.of(k) {
		x, err := pki.ParseCRL(p.Data)
		if err != nil || issuer != nil && !bytes.Equal(x.RawIssuer, issuer) {
			continue
		}
		if der == nil || better(asOf, x.ThisUpdate, x.NextUpdate, from, until) {
			der, from, until = p.Data, x.ThisUpdate, x.NextUpdate
		}
	}
	return der
}

func (b *Bundle) tcbInfo(p *collateral.PCK, asOf time.Time) (best *Part) {
	var found *collateral.TCBInfo
	for _, part := range b.of(TCBInfo) {
		t, err := collateral.ParseTCBInfo(part.Data)
		if err != nil || !bytes.Equal(t.FMSPC, p.FMSPC) {
			continue
		}
		if found == nil || moreUseful(asOf, t.Dates(), found.Dates(), t.Evaluation, found.Evaluation) {
			best, found = part, t
		}
	}
	return best
}

// qeIdentity finds the identity of an evaluation, or else the most useful one.
func (b *Bundle) qeIdentity(evaluation int, asOf time.Time) (best *Part) {
	var found *collateral.QEIdentity
	for _, part := range b.of(QEIdentity) {
		q, err := collateral.ParseQEIdentity(part.Data)
		if err != nil {
			continue
		}
		same, had := q.Evaluation == evaluation, found != nil && found.Evaluation == evaluation
		if found == nil || same && !had ||
			same == had && moreUseful(asOf, q.Dates(), found.Dates(), q.Evaluation, found.Evaluation) {
			best, found = part, q
		}
	}
	return best
}

// moreUseful prefers valid parts to others, then higher evaluations, then later dates.
func moreUseful(at time.Time, a, b collateral.Dates, x, y int) bool {
	if v, o := a.Valid(at), b.Valid(at); v != o {
		return v
	}
	if x != y {
		return x > y
	}
	return a.Until.After(b.Until)
}
