// Package evidencetest plays AMD and Intel for tests: it makes reports, quotes, certificates,
// revocation lists and collateral as theirs are, under roots of its own, so that all of
// verification can be tried on any machine. Nothing that is made here proves anything.
package evidencetest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"
)

// Begin is when the certificates begin to be valid.
func Begin() time.Time { return time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC) }

// AsOf is a time at which all is valid.
func AsOf() time.Time { return time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC) }

// End is when the certificates end to be valid.
func End() time.Time { return time.Date(2032, 1, 1, 0, 0, 0, 0, time.UTC) }

// holder is a key with its certificate.
type holder struct {
	key  crypto.Signer
	cert *x509.Certificate
}

func (h holder) pem() []byte { return PEM(h.cert) }

// PEM is the text of certificates.
func PEM(chain ...*x509.Certificate) (text []byte) {
	for _, c := range chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return text
}

// issue makes a certificate for a key. Without a parent it is signed by the key itself.
func issue(t testing.TB, key crypto.Signer, parent *holder, template *x509.Certificate) holder {
	t.Helper()
	if template.NotBefore.IsZero() {
		template.NotBefore, template.NotAfter = Begin(), End()
	}
	if template.SerialNumber == nil {
		template.SerialNumber = big.NewInt(0)
	}
	above, signer := template, key
	if parent != nil {
		above, signer = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, above, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return holder{key, c}
}

// revoke makes a list of revoked serial numbers, valid from a time on.
func revoke(t testing.TB, issuer holder, from, until time.Time, serials ...int64) []byte {
	t.Helper()
	template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: from, NextUpdate: until}
	if _, rsa := issuer.key.(*ecdsa.PrivateKey); !rsa {
		template.SignatureAlgorithm = x509.SHA384WithRSAPSS
	}
	for _, n := range serials {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: big.NewInt(n), RevocationTime: from})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, issuer.cert, issuer.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func ecKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func named(cn string) pkix.Name { return pkix.Name{CommonName: cn} }
