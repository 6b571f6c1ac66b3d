package collateral

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence/pki"
	"github.com/vmlatch/vmlatch/firmware/evidence/refusal"
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

// signing is a part with what vouches for it, and the codes for what can be wrong with it.
type signing struct {
	chain, text, signature []byte
	wrongChain, wrongSig   refusal.Reason
}

func (c *Collateral) tcbInfo() signing {
	return signing{c.TCBInfoChain, c.TCBInfo, c.TCBInfoSig, refusal.TCBInfoChain, refusal.TCBInfoSignature}
}

func (c *Collateral) qeIdentity() signing {
	return signing{c.QEChain, c.QE, c.QESig, refusal.QEIdentitySignature, refusal.QEIdentitySignature}
}

// verify checks the chain and the signature of a part. The list is of the root's revoked
// certificates.
func (s signing) verify(root *Root, crl *x509.RevocationList, asOf time.Time) error {
	chain, err := pki.ParsePEM(s.chain)
	if err == nil {
		err = root.signed(chain, []string{nameTCBSigning})
	}
	if err != nil {
		return refusal.New(s.wrongChain).Because("%v", err)
	}
	signer := chain[0]
	if err := pki.ValidAt(asOf, signer); err != nil {
		return err
	}
	if err := pki.NotListed(crl, signer); err != nil {
		return err
	}
	key, ok := signer.PublicKey.(*ecdsa.PublicKey)
	sum := sha256.Sum256(s.text)
	if !ok || !pki.VerifyRaw(key, sum[:], s.signature) {
		return refusal.New(s.wrongSig)
	}
	return nil
}

// Signed checks who signed TCB info and identity, and reads both.
func (c *Collateral) Signed(root *Root, crl *x509.RevocationList, asOf time.Time) (*TCBInfo, *QEIdentity, error) {
	if err := c.tcbInfo().verify(root, crl, asOf); err != nil {
		return nil, nil, err
	}
	if err := c.qeIdentity().verify(root, crl, asOf); err != nil {
		return nil, nil, err
	}
	info, err := ParseTCBInfo(c.TCBInfo)
	if err != nil {
		return nil, nil, err
	}
	qe, err := ParseQEIdentity(c.QE)
	return info, qe, err
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
	if at.Before(p.IssueDate) || at.After(p.NextUpdate.Add(stale)) {
		return refusal.New(reason).Because("it is valid from %s to %s, not at %s",
			pki.Date(p.IssueDate), pki.Date(p.NextUpdate), pki.Date(at))
	}
	return nil
}
