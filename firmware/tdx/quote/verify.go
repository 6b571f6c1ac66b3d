package quote

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"slices"
	"time"

	"github.com/vmlatch/vmlatch/firmware/pki"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
)

// Evidence is what a quote is judged by. None of it is trusted: it is believed only
// as far as Intel's root has signed it.
type Evidence struct {
	Quote      *Quote
	Collateral *collateral.Collateral // nil for none
	Root       *collateral.Root
}

// Verdict is what was found of a genuine quote's platform.
type Verdict struct {
	PCK   *collateral.PCK
	State *collateral.State // nil without collateral
	Until time.Time         // when the first certificate or part of the collateral expires
	// Relaunch says that the platform's module is newer than the one that launched the domain:
	// a launch anew makes it up to date.
	Relaunch bool
}

// Verify checks that a quote is genuine at a time, what state its platform is in, and then the
// owner's demands. The error is the refusal of the first check that fails; the verdict is then
// what was found before.
func (e *Evidence) Verify(asOf time.Time, p *Policy) (*Verdict, error) {
	v, err := e.Genuine(asOf, p)
	if err != nil {
		return v, err
	}
	return v, p.Check(e.Quote, v)
}

// Genuine is the first half of Verify. Of a policy only what it tolerates counts.
func (e *Evidence) Genuine(asOf time.Time, p *Policy) (v *Verdict, err error) {
	v = &Verdict{}
	q := e.Quote
	leaf, ca, err := e.chain(asOf)
	if err != nil {
		return v, err
	}
	v.Until = earliest(leaf.NotAfter, ca.NotAfter, e.Root.X509.NotAfter)
	if v.PCK, err = q.Claimed(); err != nil { // the chain's first certificate is the leaf
		return v, err
	}
	rootCRL, err := e.revocation(v, leaf, ca, asOf, p)
	if err != nil {
		return v, err
	}
	if err := q.signatures(v.PCK.Key); err != nil {
		return v, err
	}
	if e.Collateral != nil {
		return v, e.state(v, rootCRL, asOf, p)
	}
	if err := q.intelsModule(); err != nil {
		return v, err
	}
	return v, collateral.KnownQE(&q.qe)
}

func earliest(times ...time.Time) time.Time {
	return slices.MinFunc(times, func(a, b time.Time) int { return a.Compare(b) })
}

func (e *Evidence) chain(asOf time.Time) (leaf, ca *x509.Certificate, err error) {
	if err := e.Quote.chainErr; err != nil {
		return nil, nil, refusal.New(refusal.Chain).Because("%v", err)
	}
	if leaf, ca, err = e.Root.PCKChain(e.Quote.chain); err != nil {
		return nil, nil, err
	}
	return leaf, ca, pki.ValidAt(asOf, leaf, ca, e.Root.X509)
}

// revocation checks that neither the platform nor its authority is revoked, and returns the
// root's list. Without collateral, which must be allowed, there is none.
func (e *Evidence) revocation(
	v *Verdict, leaf, ca *x509.Certificate, asOf time.Time, p *Policy,
) (*x509.RevocationList, error) {
	if e.Collateral == nil {
		if p.NoCollateral {
			return nil, nil
		}
		return nil, refusal.New(refusal.CollateralMissing)
	}
	root, pck, err := e.Collateral.Lists(e.Root)
	if err != nil {
		return nil, err
	}
	if err := pki.CRLSigned(root, e.Root.X509); err != nil {
		return nil, err
	}
	if err := pki.CRLSigned(pck, ca); err != nil {
		return nil, err
	}
	for _, x := range []*x509.RevocationList{root, pck} {
		if err := pki.CRLValidAt(x, asOf, p.CRLStale); err != nil {
			return nil, err
		}
		v.Until = earliest(v.Until, x.NextUpdate)
	}
	c := e.Collateral
	if err := cmp.Or(pki.NotListed(root, ca), c.NotListed(e.Root.X509, ca), c.NotListed(ca, leaf)); err != nil {
		return nil, err
	}
	return root, pki.NotListed(pck, leaf)
}

// signatures checks that the platform's key signed the report of the quoting enclave, that this
// vouches for the attestation key, and that the attestation key signed the quote.
func (q *Quote) signatures(platform *ecdsa.PublicKey) error {
	sum := sha256.Sum256(q.qeReport)
	if !pki.VerifyRaw(platform, sum[:], q.qeSig) {
		return refusal.New(refusal.QEReportSignature)
	}
	binding := sha256.Sum256(slices.Concat(q.key, q.authData))
	if !bytes.Equal(q.qeBinding, append(binding[:], make([]byte, 32)...)) {
		return refusal.New(refusal.AttestationKeyBinding)
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, q.key...))
	if err != nil {
		return refusal.New(refusal.Signature).Because("the attestation key is not a point of the curve")
	}
	sum = sha256.Sum256(q.signed)
	if !pki.VerifyRaw(key, sum[:], q.sig) {
		return refusal.New(refusal.Signature)
	}
	return nil
}

// state judges the platform by the collateral.
func (e *Evidence) state(v *Verdict, rootCRL *x509.RevocationList, asOf time.Time, p *Policy) error {
	info, qe, err := e.Collateral.Signed(e.Root, rootCRL, asOf)
	if err != nil {
		return err
	}
	q := e.Quote
	m := &collateral.Measured{
		TEETCBSVN: q.Body.TEETCBSVN, MRSignerSEAM: q.Body.MRSignerSEAM[:],
		SEAMAttributes: q.Body.SEAMAttributes[:], QE: q.qe,
	}
	v.State, err = collateral.Judge(info, qe, v.PCK, m, asOf, collateral.Demands{
		MinEvaluation: p.MinEvaluation, Stale: p.CollateralStale,
	})
	if err != nil {
		return err
	}
	v.Until = earliest(v.Until, v.State.Until, e.Collateral.SignersUntil(e.Root))
	v.Relaunch = q.Is15 && info.Relaunch(m, v.State, q.Body.TEETCBSVN2)
	return nil
}

// intelsModule is a refusal unless the module is Intel's, whose signer and attributes are zero.
func (q *Quote) intelsModule() error {
	if q.Body.MRSignerSEAM != [48]byte{} || q.Body.SEAMAttributes != [8]byte{} {
		return refusal.New(refusal.TDXModule).Because("its signer or its attributes are not zero")
	}
	return nil
}

// Claimed is what the quote's chain says of the platform. Nothing of it is checked.
func (q *Quote) Claimed() (*collateral.PCK, error) {
	if q.chainErr != nil {
		return nil, q.chainErr
	}
	return q.pck, q.pckErr
}
