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
	"math/big"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/firmware/pki"
)

// Begin is when the certificates begin to be valid.
func Begin() time.Time { return time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC) }

// AsOf is a time at which all is valid.
func AsOf() time.Time { return time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC) }

// End is when the certificates end to be valid.
func End() time.Time { return time.Date(2032, 1, 1, 0, 0, 0, 0, time.UTC) }

// holder is a key with its certificate.
type holder struct{ *pki.Authority }

func (h holder) pem() []byte { return pki.PEM(h.Cert) }

// issue makes a certificate for a key. Without a parent it is signed by the key itself.
func issue(t testing.TB, key crypto.Signer, parent *holder, template *x509.Certificate) holder {
	t.Helper()
	if template.NotBefore.IsZero() {
		template.NotBefore, template.NotAfter = Begin(), End()
	}
	if template.SerialNumber == nil {
		template.SerialNumber = big.NewInt(0)
	}
	sign := pki.SelfSigned
	if parent != nil {
		sign = parent.Issue
	}
	return holder{must(sign(key, template))(t)}
}

// revoke makes a list of revoked serial numbers, valid from a time on.
func revoke(t testing.TB, issuer holder, from, until time.Time, serials ...int64) []byte {
	t.Helper()
	var numbers []*big.Int
	for _, n := range serials {
		numbers = append(numbers, big.NewInt(n))
	}
	return must(issuer.Revoke(from, until, numbers...))(t)
}

// must ends a test unless all went well.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ecKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	return must(ecdsa.GenerateKey(c, rand.Reader))(t)
}

func named(cn string) pkix.Name { return pkix.Name{CommonName: cn} }
