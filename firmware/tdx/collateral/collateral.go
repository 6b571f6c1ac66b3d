package collateral

import (
	"cmp"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vmlatch/vmlatch/firmware/pki"
	"github.com/vmlatch/vmlatch/firmware/refusal"
)

// MaxSize is the longest collateral that is read, in bytes.
const MaxSize = 1 << 20

// Collateral is what Intel publishes about a family of platforms. Signatures are over the exact
// bytes, so these are kept.
type Collateral struct {
	PCKCRLChain  []byte // PEM; not needed, as the quote brings it
	RootCRL      []byte // DER
	PCKCRL       []byte // DER
	TCBInfoChain []byte // PEM
	TCBInfo      []byte // JSON
	TCBInfoSig   []byte // r and s, 64 bytes
	QEChain      []byte // PEM
	QE           []byte // JSON
	QESig        []byte
	// Others are further lists of the same issuers: what any of them has revoked is revoked.
	Others []*x509.RevocationList

	once sync.Once
	read readings
}

// readings are what collateral says, read once: it judges many quotes.
type readings struct {
	root, pck  *x509.RevocationList
	rootErr    error
	pckErr     error
	info, qe   *x509.Certificate // who signed the parts; nil if that is wrong
	infoErr    error
	qeErr      error
	tcb        *TCBInfo
	tcbErr     error
	identity   *QEIdentity
	identErr   error
	verifiedBy *Root // under which root the signatures were verified
}

// reading reads everything. Of several roots, which no user of this package has, the first
// counts for what is kept.
func (c *Collateral) reading(root *Root) *readings {
	c.once.Do(func() { c.read = c.readAll(root) })
	if c.read.verifiedBy != root {
		r := c.readAll(root)
		return &r
	}
	return &c.read
}

func (c *Collateral) readAll(root *Root) (r readings) {
	r.verifiedBy = root
	r.root, r.rootErr = pki.ParseCRL(c.RootCRL)
	r.pck, r.pckErr = pki.ParseCRL(c.PCKCRL)
	r.info, r.infoErr = c.tcbInfo().signer(root)
	r.qe, r.qeErr = c.qeIdentity().signer(root)
	r.tcb, r.tcbErr = ParseTCBInfo(c.TCBInfo)
	r.identity, r.identErr = ParseQEIdentity(c.QE)
	return r
}

// SignersUntil is until when the certificates are valid that vouch for the signed parts.
func (c *Collateral) SignersUntil(root *Root) time.Time {
	r := c.reading(root)
	if r.qe.NotAfter.Before(r.info.NotAfter) {
		return r.qe.NotAfter
	}
	return r.info.NotAfter
}

// Lists are the revocation lists of the root and of the platform's authority, which are not
// verified yet.
func (c *Collateral) Lists(root *Root) (ofRoot, ofPCK *x509.RevocationList, err error) {
	r := c.reading(root)
	return r.root, r.pck, cmp.Or(r.rootErr, r.pckErr)
}

// ErrFormat is wrapped by errors about collateral that is not a JSON object of texts.
var ErrFormat = errors.New("malformed collateral")

// file is collateral as one JSON object.
type file struct {
	PCKCRLChain  string `json:"pck_crl_issuer_chain"`
	RootCRL      string `json:"root_ca_crl"`
	PCKCRL       string `json:"pck_crl"`
	TCBInfoChain string `json:"tcb_info_issuer_chain"`
	TCBInfo      string `json:"tcb_info"`
	TCBInfoSig   string `json:"tcb_info_signature"`
	QEChain      string `json:"qe_identity_issuer_chain"`
	QE           string `json:"qe_identity"`
	QESig        string `json:"qe_identity_signature"`
}

// Parse reads collateral as one JSON object of texts: chains in PEM, revocation lists in hex,
// signed parts exactly as they were signed, signatures in hex.
func Parse(b []byte) (*Collateral, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrFormat, len(b), MaxSize)
	}
	var f file
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if f.TCBInfo == "" && f.QE == "" && f.PCKCRL == "" {
		return nil, fmt.Errorf("%w: it has neither tcb_info nor qe_identity nor pck_crl", ErrFormat)
	}
	c := &Collateral{
		PCKCRLChain: []byte(f.PCKCRLChain), TCBInfoChain: []byte(f.TCBInfoChain), TCBInfo: []byte(f.TCBInfo),
		QEChain: []byte(f.QEChain), QE: []byte(f.QE),
	}
	var err error
	for _, x := range []struct {
		text   string
		to     *[]byte
		reason refusal.Reason
	}{
		{f.RootCRL, &c.RootCRL, refusal.CRLMalformed},
		{f.PCKCRL, &c.PCKCRL, refusal.CRLMalformed},
		{f.TCBInfoSig, &c.TCBInfoSig, refusal.TCBInfoSignature},
		{f.QESig, &c.QESig, refusal.QEIdentitySignature},
	} {
		if *x.to, err = hex.DecodeString(x.text); err != nil {
			return nil, refusal.New(x.reason).Because("%v", err)
		}
	}
	return c, nil
}
