package bundle

import (
	"bytes"
	"time"

	"github.com/vmlatch/vmlatch/firmware/sev/kds"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
)

// Endorsement finds the certificate of the key that signed a report; nil if the bundle does not
// have it. Whether it may be believed is for the judgement to say.
func (b *Bundle) Endorsement(r *report.Report) *kds.Certificate {
	var found []*kds.Certificate
	for _, p := range b.of(Endorsement) {
		if c := p.content().ek; c != nil && r.MayBeBy(c) {
			found = append(found, c)
		}
	}
	if len(found) == 1 && !r.Masked() {
		return found[0]
	}
	for _, c := range found { // of several the signature tells which
		if r.SignedBy(c) {
			return c
		}
	}
	return nil
}

// CRL finds the list of a line that is valid at a time, or the last to expire; nil if there is
// none.
func (b *Bundle) CRL(l kds.Line, asOf time.Time) (best *kds.CRL) {
	for _, p := range b.of(AMDCRL) {
		r := p.content()
		if r.crl == nil || r.line != l {
			continue
		}
		if best == nil ||
			better(asOf, r.crl.ThisUpdate, r.crl.NextUpdate, best.X509.ThisUpdate, best.X509.NextUpdate) {
			best = &kds.CRL{Line: l, X509: r.crl}
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
func (b *Bundle) Collateral(p *collateral.PCK, asOf time.Time) *collateral.Collateral {
	info := b.tcbInfo(p, asOf)
	if info == nil {
		return nil
	}
	qe := b.qeIdentity(info.content().info.Evaluation, asOf)
	root, pck := b.crlOf(RootCRL, nil, asOf), b.crlOf(PCKCRL, p.X509.RawIssuer, asOf)
	if qe == nil || root == nil || pck == nil {
		return nil
	}
	key := [4]*byte{&info.Data[0], &qe.Data[0], &root.Data[0], &pck.Data[0]}
	b.mu.Lock()
	defer b.mu.Unlock()
	if c := b.sets[key]; c != nil {
		return c
	}
	c := &collateral.Collateral{
		TCBInfo: info.Data, TCBInfoChain: info.Chain, TCBInfoSig: info.Signature,
		QE: qe.Data, QEChain: qe.Chain, QESig: qe.Signature, RootCRL: root.Data, PCKCRL: pck.Data,
	}
	if b.sets == nil {
		b.sets = map[[4]*byte]*collateral.Collateral{}
	}
	b.sets[key] = c
	return c
}

// crlOf finds the most useful list of an issuer.
func (b *Bundle) crlOf(k Kind, issuer []byte, asOf time.Time) (best *Part) {
	for _, p := range b.of(k) {
		x := p.content().crl
		if x == nil || issuer != nil && !bytes.Equal(x.RawIssuer, issuer) {
			continue
		}
		if best == nil ||
			better(asOf, x.ThisUpdate, x.NextUpdate, best.content().crl.ThisUpdate, best.content().crl.NextUpdate) {
			best = p
		}
	}
	return best
}

func (b *Bundle) tcbInfo(p *collateral.PCK, asOf time.Time) (best *Part) {
	for _, part := range b.of(TCBInfo) {
		t := part.content().info
		if t == nil || !bytes.Equal(t.FMSPC, p.FMSPC) {
			continue
		}
		if best == nil || moreUseful(asOf, t.Dates(), best.content().info.Dates(), t.Evaluation,
			best.content().info.Evaluation) {
			best = part
		}
	}
	return best
}

// qeIdentity finds the identity of an evaluation, or else the most useful one.
func (b *Bundle) qeIdentity(evaluation int, asOf time.Time) (best *Part) {
	var found *collateral.QEIdentity
	for _, part := range b.of(QEIdentity) {
		q := part.content().qe
		if q == nil {
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
