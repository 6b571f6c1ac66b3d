package bundle

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/vmlatch/vmlatch/firmware/pki"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
)

// genuine are the parts of a kind that verify: others may have been put there to displace them.
func (b *Bundle) genuine(k Kind, roots Roots) (list []*Part) {
	for i := range b.Parts {
		if p := &b.Parts[i]; p.Kind == k && p.verifies(roots) {
			list = append(list, p)
		}
	}
	return list
}

// Endorsement finds the certificate of the key that signed a report; nil if the bundle does not
// have it.
func (b *Bundle) Endorsement(r *report.Report, roots Roots) *kds.Certificate {
	var found []*kds.Certificate
	for _, p := range b.genuine(Endorsement, roots) {
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
	for i := range b.Parts { // one that does not verify, so that the judgement can say why
		if c := b.Parts[i].content().ek; c != nil && r.MayBeBy(c) {
			return c
		}
	}
	return nil
}

// CRLs are all lists of a line: what any of them has revoked is revoked.
func (b *Bundle) CRLs(l kds.Line, roots Roots) (list []*kds.CRL) {
	for _, p := range b.genuine(AMDCRL, roots) {
		if r := p.content(); r.crl != nil && r.line == l {
			list = append(list, &kds.CRL{Line: l, X509: r.crl})
		}
	}
	return list
}

// Collateral puts together what a quote's platform is judged by; nil unless the bundle has all
// of it. Of several evaluations the highest counts, also if it has expired: an older one may not
// know yet what is wrong with the platform.
func (b *Bundle) Collateral(p *collateral.PCK, asOf time.Time, roots Roots) *collateral.Collateral {
	info, qe := b.evaluation(p, roots)
	root, others := b.lists(RootCRL, nil, asOf, roots)
	pck, more := b.lists(PCKCRL, p.X509.RawIssuer, asOf, roots)
	if info == nil || root == nil || pck == nil {
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
		Others: append(others, more...),
	}
	if b.sets == nil {
		b.sets = map[[4]*byte]*collateral.Collateral{}
	}
	b.sets[key] = c
	return c
}

// lists finds the list of an issuer that is valid at a time and the newest of these, or else the
// newest of all; and the others.
func (b *Bundle) lists(
	k Kind,
	issuer []byte,
	asOf time.Time,
	roots Roots,
) (best *Part, others []*x509.RevocationList) {
	parts := b.genuine(k, roots)
	valid := func(x *x509.RevocationList) bool { return pki.CRLValidAt(x, asOf, 0) == nil }
	for _, p := range parts {
		x := p.content().crl
		if issuer != nil && !bytes.Equal(x.RawIssuer, issuer) {
			continue
		}
		if best == nil {
			best = p
			continue
		}
		y := best.content().crl
		if v, w := valid(x), valid(y); v && !w || v == w && x.ThisUpdate.After(y.ThisUpdate) {
			best, x = p, y
		}
		others = append(others, x)
	}
	return best, others
}

// evaluation finds the TCB info of a platform's family and the identity of the quoting enclave,
// both of the highest evaluation of which both are there. Of one without the other a later
// evaluation would lock the owner out, so it is not used.
func (b *Bundle) evaluation(p *collateral.PCK, roots Roots) (info, qe *Part) {
	identities := map[int]*Part{}
	for _, part := range b.genuine(QEIdentity, roots) {
		q := part.content().qe
		if old := identities[q.Evaluation]; old == nil || q.NextUpdate.After(old.content().qe.NextUpdate) {
			identities[q.Evaluation] = part
		}
	}
	for _, part := range b.genuine(TCBInfo, roots) {
		t := part.content().info
		if !bytes.Equal(t.FMSPC, p.FMSPC) || identities[t.Evaluation] == nil {
			continue
		}
		if info != nil {
			is := info.content().info
			if t.Evaluation < is.Evaluation || t.Evaluation == is.Evaluation &&
				!t.NextUpdate.After(is.NextUpdate) {
				continue
			}
		}
		info, qe = part, identities[t.Evaluation]
	}
	return info, qe
}

// Marks are the highest numbers of a bundle's parts that verify: of revocation lists by their
// issuer, and of evaluations by what they are about. An owner who remembers them notices a bundle
// that went back in time.
func (b *Bundle) Marks(roots Roots) map[string]uint64 {
	marks := map[string]uint64{}
	add := func(key string, n uint64) { marks[key] = max(marks[key], n) }
	for i := range b.Parts {
		p := &b.Parts[i]
		info, err := p.Inspect(roots)
		if err != nil {
			continue
		}
		switch c := p.content(); {
		case c.crl != nil && c.crl.Number != nil && c.crl.Number.IsUint64():
			add(fmt.Sprintf("%s %s", p.Kind, c.crl.Issuer), c.crl.Number.Uint64())
		case c.info != nil:
			add(fmt.Sprintf("%s %x", p.Kind, []byte(c.info.FMSPC)), uint64(info.evaluation))
		case c.qe != nil:
			add(string(p.Kind), uint64(info.evaluation))
		}
	}
	return marks
}
