package collateral

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"time"

	"github.com/vmlatch/vmlatch/firmware/pki"
	"github.com/vmlatch/vmlatch/firmware/refusal"
)

// hexBytes are bytes in hex of either case: Intel uses both.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

// signedPart is what TCB info and identities have in common.
type signedPart struct {
	ID         string    `json:"id"`
	Version    int       `json:"version"`
	IssueDate  time.Time `json:"issueDate"`
	NextUpdate time.Time `json:"nextUpdate"`
	Evaluation int       `json:"tcbEvaluationDataNumber"`
}

// TCBInfo are the states of a family of platforms and of the TDX modules (PCS, "Get TDX TCB
// Info", version 3).
type TCBInfo struct {
	signedPart
	FMSPC      hexBytes         `json:"fmspc"`
	PCEID      hexBytes         `json:"pceId"`
	Module     identity         `json:"tdxModule"`
	Identities []moduleIdentity `json:"tdxModuleIdentities"`
	Levels     []platformLevel  `json:"tcbLevels"`
}

type identity struct {
	MRSigner       hexBytes `json:"mrsigner"`
	Attributes     hexBytes `json:"attributes"`
	AttributesMask hexBytes `json:"attributesMask"`
}

type moduleIdentity struct {
	identity
	ID     string     `json:"id"`
	Levels []isvLevel `json:"tcbLevels"`
}

// state is what Intel says of a level.
type state struct {
	Date       string   `json:"tcbDate"`
	Status     Status   `json:"tcbStatus"`
	Advisories []string `json:"advisoryIDs"`
}

type isvLevel struct {
	state
	TCB struct {
		ISVSVN uint16 `json:"isvsvn"`
	} `json:"tcb"`
}

type svn struct {
	SVN uint8 `json:"svn"`
}

type platformLevel struct {
	state
	TCB struct {
		SGX    []svn  `json:"sgxtcbcomponents"`
		PCESVN uint16 `json:"pcesvn"`
		TDX    []svn  `json:"tdxtcbcomponents"`
	} `json:"tcb"`
}

// QEIdentity is the identity of the quoting enclave for trust domains (PCS, "Get TDX QE
// Identity", version 2).
type QEIdentity struct {
	signedPart
	identity
	MiscSelect     hexBytes   `json:"miscselect"`
	MiscSelectMask hexBytes   `json:"miscselectMask"`
	ISVProdID      uint16     `json:"isvprodid"`
	Levels         []isvLevel `json:"tcbLevels"`
}

// Signed is a part with what vouches for it. The signature is over the exact text.
type Signed struct {
	Chain     []byte // PEM
	Text      []byte // JSON
	Signature []byte // r and s, 64 bytes

	wrongChain, wrongSig refusal.Reason
}

func (c *Collateral) tcbInfo() Signed {
	return Signed{c.TCBInfoChain, c.TCBInfo, c.TCBInfoSig, refusal.TCBInfoChain, refusal.TCBInfoSignature}
}

func (c *Collateral) qeIdentity() Signed {
	return Signed{c.QEChain, c.QE, c.QESig, refusal.QEIdentitySignature, refusal.QEIdentitySignature}
}

// signer checks the chain and the signature of a part, and returns who signed it.
func (s Signed) signer(root *Root) (*x509.Certificate, error) {
	chain, err := pki.ParsePEM(s.Chain)
	if err == nil {
		err = root.signed(chain, []string{nameTCBSigning})
	}
	if err != nil {
		return nil, refusal.New(s.wrongChain).Because("%v", err)
	}
	key, ok := chain[0].PublicKey.(*ecdsa.PublicKey)
	sum := sha256.Sum256(s.Text)
	if !ok || !pki.VerifyRaw(key, sum[:], s.Signature) {
		return nil, refusal.New(s.wrongSig)
	}
	return chain[0], nil
}

// TCBInfo checks who signed TCB info, and reads it.
func (s Signed) TCBInfo(root *Root) (*TCBInfo, error) {
	s.wrongChain, s.wrongSig = refusal.TCBInfoChain, refusal.TCBInfoSignature
	if _, err := s.signer(root); err != nil {
		return nil, err
	}
	return ParseTCBInfo(s.Text)
}

// QEIdentity checks who signed an identity, and reads it.
func (s Signed) QEIdentity(root *Root) (*QEIdentity, error) {
	s.wrongChain, s.wrongSig = refusal.QEIdentitySignature, refusal.QEIdentitySignature
	if _, err := s.signer(root); err != nil {
		return nil, err
	}
	return ParseQEIdentity(s.Text)
}

// Signed checks who signed TCB info and identity, and returns both. The list is the root's.
func (c *Collateral) Signed(root *Root, crl *x509.RevocationList, asOf time.Time) (*TCBInfo, *QEIdentity, error) {
	r := c.reading(root)
	for _, part := range []struct {
		signer *x509.Certificate
		err    error
	}{{r.info, r.infoErr}, {r.qe, r.qeErr}} {
		if part.err != nil {
			return nil, nil, part.err
		}
		if err := pki.ValidAt(asOf, part.signer); err != nil {
			return nil, nil, err
		}
		if err := cmp.Or(pki.NotListed(crl, part.signer), c.NotListed(root.X509, part.signer)); err != nil {
			return nil, nil, err
		}
	}
	return r.tcb, r.identity, cmp.Or(r.tcbErr, r.identErr)
}

// NotListed is a refusal if one of the other lists of an issuer names a certificate: what any of
// them has revoked is revoked.
func (c *Collateral) NotListed(issuer, x *x509.Certificate) error {
	for _, l := range c.Others {
		if pki.CRLSigned(l, issuer) == nil {
			if err := pki.NotListed(l, x); err != nil {
				return err
			}
		}
	}
	return nil
}

// ParseTCBInfo reads TCB info for trust domains. The error is a refusal.
func ParseTCBInfo(text []byte) (*TCBInfo, error) {
	var t TCBInfo
	if err := json.Unmarshal(text, &t); err != nil {
		return nil, refusal.New(refusal.TCBInfoVersion).Because("%v", err)
	}
	if t.ID != "TDX" || t.Version != 3 {
		return nil, refusal.New(refusal.TCBInfoVersion).Because("it is of %q, version %d", t.ID, t.Version)
	}
	for _, l := range t.Levels {
		if len(l.TCB.SGX) != Components || len(l.TCB.TDX) != Components {
			return nil, refusal.New(refusal.TCBInfoVersion).Because("a level has %d and %d components, must have %d",
				len(l.TCB.SGX), len(l.TCB.TDX), Components)
		}
	}
	return &t, nil
}

// ParseQEIdentity reads the identity of the quoting enclave for trust domains. The error is a
// refusal.
func ParseQEIdentity(text []byte) (*QEIdentity, error) {
	var q QEIdentity
	if err := json.Unmarshal(text, &q); err != nil {
		return nil, refusal.New(refusal.QEIdentityVersion).Because("%v", err)
	}
	if q.signedPart.ID != "TD_QE" || q.Version != 2 {
		return nil, refusal.New(refusal.QEIdentityVersion).
			Because("it is of %q, version %d", q.signedPart.ID, q.Version)
	}
	return &q, nil
}

// validAt is a refusal unless a part is valid at a time. It may be used for so long after its
// date as stale says.
func (p *signedPart) validAt(reason refusal.Reason, at time.Time, stale time.Duration) error {
	return pki.Within(reason, "it", p.IssueDate, p.NextUpdate, at, stale)
}
