package kds

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"slices"

	"github.com/vmlatch/vmlatch/firmware/refusal"
)

// Signer is the kind of a key that signs reports (SNP ABI, table 23, SIGNING_KEY).
type Signer uint8

// Kinds of keys.
const (
	VCEK Signer = 0 // of one chip, made from its own secret
	VLEK Signer = 1 // loaded by a cloud provider
)

func (s Signer) String() string {
	switch s {
	case VCEK:
		return "VCEK"
	case VLEK:
		return "VLEK"
	}
	return "no key"
}

// Certificate is an endorsement certificate: what AMD says of a key that signs reports (KDS,
// chapter 3, tables 8 to 11).
type Certificate struct {
	Signer  Signer
	Line    Line
	Product string // with its stepping, where AMD gives that
	TCB     TCB
	HWID    []byte // the chip's ID; nil for a VLEK
	CSP     string // the provider's ID; "" for a VCEK
	Key     *ecdsa.PublicKey
	X509    *x509.Certificate
}

// oid identifies an extension that AMD defines, under 1.3.6.1.4.1.3704.1.
func oid(last ...int) asn1.ObjectIdentifier {
	return append(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}, last...)
}

// Extensions of an endorsement certificate (KDS, table 8).
var (
	oidStructVersion = oid(1)
	oidProduct       = oid(2)
	oidBootLoader    = oid(3, 1)
	oidTEE           = oid(3, 2)
	oidSNP           = oid(3, 3)
	oidMicrocode     = oid(3, 8)
	oidFMC           = oid(3, 9)
	oidHWID          = oid(4)
	oidCSP           = oid(5)
)

// ParseCertificate reads an endorsement certificate in DER. The error is a refusal.
func ParseCertificate(der []byte) (*Certificate, error) {
	bad := func(format string, args ...any) error {
		return refusal.New(refusal.CertProfile).Because(format, args...)
	}
	x, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, bad("%v", err)
	}
	c := &Certificate{X509: x}
	key, ok := x.PublicKey.(*ecdsa.PublicKey)
	switch {
	case x.Version != 3:
		return nil, bad("X.509 version %d, must be 3", x.Version)
	case x.SignatureAlgorithm != x509.SHA384WithRSAPSS:
		return nil, bad("it is signed with %v, must be RSASSA-PSS with SHA-384", x.SignatureAlgorithm)
	case !ok || key.Curve != elliptic.P384():
		return nil, bad("its key is not ECDSA P-384")
	case x.Subject.CommonName == "SEV-VCEK":
		c.Signer = VCEK
	case x.Subject.CommonName == "SEV-VLEK":
		c.Signer = VLEK
	default:
		return nil, bad("its subject is %q, must be SEV-VCEK or SEV-VLEK", x.Subject.CommonName)
	}
	c.Key = key
	e, err := extensionsOf(x)
	if err != nil {
		return nil, bad("%v", err)
	}
	c.Product = e.text(oidProduct)
	if c.Line, ok = lineNamed(c.Product); !ok {
		return nil, bad("product %q is not known", c.Product)
	}
	if want := issuerOf(c.Line, c.Signer); x.Issuer.CommonName != want {
		return nil, bad("its issuer is %q, must be %q", x.Issuer.CommonName, want)
	}
	if v := e.number(oidStructVersion); v > 1 {
		return nil, bad("structure version %d is neither 0 nor 1", v)
	}
	c.TCB = TCB{
		BootLoader: e.number(oidBootLoader), TEE: e.number(oidTEE), SNP: e.number(oidSNP),
		Microcode: e.number(oidMicrocode),
	}
	if c.Line == Turin {
		c.TCB.FMC = e.number(oidFMC)
	}
	for id, only := range map[string]Signer{oidHWID.String(): VCEK, oidCSP.String(): VLEK} {
		if _, there := e.byID[id]; there && c.Signer != only {
			return nil, bad("extension %s does not belong in that of a %s", id, c.Signer)
		}
	}
	if c.Signer == VCEK {
		c.HWID = hwid(e.raw(oidHWID), c.Line.HWIDSize())
		if len(c.HWID) != c.Line.HWIDSize() {
			return nil, bad("the chip's ID has %d bytes, must have %d", len(c.HWID), c.Line.HWIDSize())
		}
	} else {
		c.CSP = e.text(oidCSP)
	}
	return c, e.err
}

// hwid is a chip's ID, which stands in its extension bare, or in an OCTET STRING. An ID may
// begin as such a string does, so only the length tells.
func hwid(b []byte, size int) []byte {
	if len(b) == size+2 && b[0] == asn1.TagOctetString && int(b[1]) == size {
		return b[2:]
	}
	return b
}

// issuerOf is the common name of the authority for a line's keys.
func issuerOf(l Line, s Signer) string {
	if s == VLEK {
		return "SEV-VLEK-" + string(l)
	}
	return "SEV-" + string(l)
}

// extensions are AMD's extensions of a certificate, and the first fault in them.
type extensions struct {
	byID map[string][]byte
	err  error
}

func extensionsOf(x *x509.Certificate) (*extensions, error) {
	e := &extensions{byID: map[string][]byte{}}
	prefix := oid()
	for _, ext := range x.Extensions {
		if len(ext.Id) <= len(prefix) || !slices.Equal(ext.Id[:len(prefix)], prefix) {
			continue
		}
		id := ext.Id.String()
		if _, twice := e.byID[id]; twice {
			return nil, refusal.New(refusal.CertProfile).Because("extension %s stands there twice", id)
		}
		e.byID[id] = ext.Value
	}
	return e, nil
}

// raw is an extension's value.
func (e *extensions) raw(id asn1.ObjectIdentifier) []byte {
	b, ok := e.byID[id.String()]
	if !ok && e.err == nil {
		e.err = refusal.New(refusal.CertProfile).Because("extension %v is missing", id)
	}
	return b
}

// number is an extension's value as an INTEGER from 0 to 255.
func (e *extensions) number(id asn1.ObjectIdentifier) uint8 {
	b := e.raw(id)
	var n int
	if rest, err := asn1.Unmarshal(b, &n); e.err == nil && (err != nil || len(rest) > 0 || n < 0 || n > 255) {
		e.err = refusal.New(refusal.CertProfile).Because("extension %v is not a number from 0 to 255", id)
	}
	return uint8(n)
}

// text is an extension's value as an IA5String.
func (e *extensions) text(id asn1.ObjectIdentifier) string {
	b := e.raw(id)
	var s string
	if rest, err := asn1.UnmarshalWithParams(b, &s, "ia5"); e.err == nil && (err != nil || len(rest) > 0) {
		e.err = refusal.New(refusal.CertProfile).Because("extension %v is not a text", id)
	}
	return s
}
