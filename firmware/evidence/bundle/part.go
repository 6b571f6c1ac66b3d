package bundle

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/vmlatch/vmlatch/firmware/pki"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
)

// Info is what a part says of itself, once its signature was verified.
type Info struct {
	Kind  Kind      `json:"kind"`
	About string    `json:"about"` // for people
	From  time.Time `json:"from"`
	Until time.Time `json:"until"`
	Note  string    `json:"note,omitempty"`

	subject    string // what it is about, for comparison with others of its kind
	revoked    []string
	evaluation int
	data       []byte
}

// supersedes reports whether a part makes another useless: both are about the same, this one is
// newer (of equal ones the larger bytes are taken, so that the order does not count), and
// nothing that the other revokes is forgotten.
func (i *Info) supersedes(other *Info) bool {
	if i.Kind != other.Kind || i.subject != other.subject {
		return false
	}
	newer := cmp.Or(i.From.Compare(other.From), cmp.Compare(i.Until.Unix(), other.Until.Unix()),
		bytes.Compare(i.data, other.data))
	if newer < 0 {
		return false
	}
	for _, serial := range other.revoked {
		if !slices.Contains(i.revoked, serial) {
			return false
		}
	}
	return true
}

// Inspect verifies that a part is signed by its vendor, and says what it is. The error is a
// refusal. Dates are not judged.
func (p *Part) Inspect(roots Roots) (*Info, error) {
	kept := p.kept()
	if kept == nil || p.Kind == CEK {
		return p.inspect(roots)
	}
	return kept.inspected(authority{roots.AMD, roots.Intel}, func() (*Info, error) { return p.inspect(roots) })
}

// verifies reports whether a part is signed by its vendor.
func (p *Part) verifies(roots Roots) bool {
	_, err := p.Inspect(roots)
	return err == nil
}

func (p *Part) inspect(roots Roots) (*Info, error) {
	var i *Info
	var err error
	switch p.Kind {
	case Endorsement:
		i, err = p.endorsement(roots)
	case AMDCRL:
		i, err = p.amdCRL(roots)
	case RootCRL, PCKCRL:
		i, err = p.intelCRL(roots)
	case TCBInfo, QEIdentity:
		i, err = p.intelPart(roots)
	case CEK:
		i, err = p.cek(roots)
	default:
		err = fmt.Errorf("%w: unknown kind %q of part", ErrFormat, p.Kind)
	}
	if err != nil {
		return nil, err
	}
	i.Kind, i.data = p.Kind, p.Data
	return i, nil
}

func (p *Part) endorsement(roots Roots) (*Info, error) {
	c, err := kds.ParseCertificate(p.Data)
	if err != nil {
		return nil, err
	}
	if err := roots.AMD.Chain(c, c.X509.NotBefore); err != nil {
		return nil, err
	}
	who := "provider " + c.CSP
	if c.Signer == kds.VCEK {
		who = "chip " + hex.EncodeToString(c.HWID[:8])
		if len(c.HWID) > 8 {
			who += "…"
		}
	}
	return &Info{
		About: fmt.Sprintf("%s of %s, %s: %s", c.Signer, c.Line, who, c.TCB.Text(c.Line)),
		From:  c.X509.NotBefore, Until: c.X509.NotAfter,
		subject: fmt.Sprintf("%s %s %x %s %+v %x", c.Signer, c.Line, c.HWID, c.CSP, c.TCB,
			sha256.Sum256(c.X509.RawSubjectPublicKeyInfo)),
	}, nil
}

func serials(x *x509.RevocationList) (list []string) {
	for _, e := range x.RevokedCertificateEntries {
		list = append(list, e.SerialNumber.String())
	}
	return list
}

func (p *Part) amdCRL(roots Roots) (*Info, error) {
	c, err := kds.ParseCRL(p.Data)
	if err != nil {
		return nil, err
	}
	if err := roots.AMD.Signed(c); err != nil {
		return nil, err
	}
	return crlInfo(c.X509, "ARK-"+string(c.Line)), nil
}

func crlInfo(x *x509.RevocationList, issuer string) *Info {
	return &Info{
		About: fmt.Sprintf("certificates that %s has revoked: %d", issuer, len(x.RevokedCertificateEntries)),
		From:  x.ThisUpdate, Until: x.NextUpdate, subject: issuer, revoked: serials(x),
	}
}

func (p *Part) intelCRL(roots Roots) (*Info, error) {
	x, err := pki.ParseCRL(p.Data)
	if err != nil {
		return nil, err
	}
	if p.Kind == RootCRL {
		if err := pki.CRLSigned(x, roots.Intel.X509); err != nil {
			return nil, err
		}
		return crlInfo(x, x.Issuer.CommonName), nil
	}
	ca, err := roots.Intel.PCKAuthority(p.Chain)
	if err != nil {
		return nil, err
	}
	if err := pki.CRLSigned(x, ca); err != nil {
		return nil, err
	}
	return crlInfo(x, ca.Subject.CommonName), nil
}

func (p *Part) intelPart(roots Roots) (*Info, error) {
	signed := collateral.Signed{Chain: p.Chain, Text: p.Data, Signature: p.Signature}
	if p.Kind == QEIdentity {
		q, err := signed.QEIdentity(roots.Intel)
		if err != nil {
			return nil, err
		}
		return &Info{
			About: fmt.Sprintf("identity of the TD quoting enclave, evaluation %d", q.Evaluation),
			From:  q.IssueDate, Until: q.NextUpdate, evaluation: q.Evaluation, subject: fmt.Sprint(q.Evaluation),
		}, nil
	}
	t, err := signed.TCBInfo(roots.Intel)
	if err != nil {
		return nil, err
	}
	return &Info{
		About: fmt.Sprintf("states of platforms of family %x, evaluation %d", []byte(t.FMSPC), t.Evaluation),
		From:  t.IssueDate, Until: t.NextUpdate, evaluation: t.Evaluation,
		subject: fmt.Sprintf("%x %d", []byte(t.FMSPC), t.Evaluation),
	}, nil
}

func (p *Part) cek(roots Roots) (*Info, error) {
	c, err := sev.ParseCertificate(p.Data)
	if err != nil {
		return nil, err
	}
	err = fmt.Errorf("%w: no root for certificates of SEV chips", ErrFormat)
	for _, root := range roots.SEV {
		if err = root.Endorses(c); err == nil {
			sum := sha256.Sum256(p.Data)
			return &Info{
				About: fmt.Sprintf("signed CEK of an SEV chip, SHA-256 %x…", sum[:8]), subject: string(sum[:]),
			}, nil
		}
	}
	return nil, err
}
