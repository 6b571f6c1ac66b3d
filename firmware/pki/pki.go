// Package pki has the checks of certificates and revocation lists that AMD's and Intel's have in
// common. It judges at a given time, and knows neither a clock nor the system's roots. Errors
// are refusals.
package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/vmlatch/vmlatch/firmware/refusal"
)

// SignedBy is an error unless a certificate is signed by another's key. Names and constraints
// play no part: which key may sign what is fixed.
func SignedBy(child, parent *x509.Certificate) error {
	if parent.CheckSignature(child.SignatureAlgorithm, child.RawTBSCertificate, child.Signature) != nil {
		return refusal.New(refusal.Chain).Because("%s is not signed by %s",
			child.Subject.CommonName, parent.Subject.CommonName)
	}
	return nil
}

// ValidAt is an error unless all certificates are valid at a time.
func ValidAt(at time.Time, chain ...*x509.Certificate) error {
	for _, x := range chain {
		if err := Within(refusal.CertExpired, x.Subject.CommonName, x.NotBefore, x.NotAfter, at, 0); err != nil {
			return err
		}
	}
	return nil
}

// Within is a refusal unless what has dates is valid at a time. It may be used for so long after
// its end as stale says. For what is not valid yet a newer one does not help.
func Within(r refusal.Reason, what string, from, until, at time.Time, stale time.Duration) error {
	if !at.Before(from) && !at.After(until.Add(stale)) {
		return nil
	}
	e := refusal.New(r).Because("%s is valid from %s to %s, not at %s", what, Date(from), Date(until), Date(at))
	if at.Before(from) {
		e.Fix = "judge at a later time (--as-of), or give what was valid then"
	}
	return e
}

// Date writes a time as the vendors' documents do.
func Date(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// ParseCRL reads a revocation list in DER.
func ParseCRL(der []byte) (*x509.RevocationList, error) {
	x, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, refusal.New(refusal.CRLMalformed).Because("%v", err)
	}
	return x, nil
}

// IsIssuer reports whether a list says that a certificate's holder has made it.
func IsIssuer(x *x509.RevocationList, issuer *x509.Certificate) bool {
	return bytes.Equal(x.RawIssuer, issuer.RawSubject)
}

// CRLSigned is an error unless a list is signed by an issuer.
func CRLSigned(x *x509.RevocationList, issuer *x509.Certificate) error {
	if !IsIssuer(x, issuer) ||
		issuer.CheckSignature(x.SignatureAlgorithm, x.RawTBSRevocationList, x.Signature) != nil {
		return refusal.New(refusal.CRLSignature).Because("it is not signed by %s", issuer.Subject.CommonName)
	}
	return nil
}

// CRLValidAt is an error unless a list is valid at a time. It may be used for so long after its
// date as stale says.
func CRLValidAt(x *x509.RevocationList, at time.Time, stale time.Duration) error {
	return Within(refusal.CRLExpired, "that of "+x.Issuer.CommonName, x.ThisUpdate, x.NextUpdate, at, stale)
}

// NotListed is an error if a list names one of the certificates.
func NotListed(x *x509.RevocationList, chain ...*x509.Certificate) error {
	for _, c := range chain {
		for _, e := range x.RevokedCertificateEntries {
			if e.SerialNumber.Cmp(c.SerialNumber) == 0 {
				return refusal.New(refusal.Revoked).Because("%s", c.Subject.CommonName)
			}
		}
	}
	return nil
}

// maxChain is how many certificates a chain may have.
const maxChain = 8

// ParsePEM reads the certificates of a text, and refuses other blocks.
func ParsePEM(text []byte) (chain []*x509.Certificate, err error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" || len(chain) == maxChain {
			return nil, fmt.Errorf("a block %q, or more than %d certificates", block.Type, maxChain)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		chain = append(chain, c)
	}
	if len(chain) == 0 {
		return nil, errors.New("there is no certificate")
	}
	return chain, nil
}

// VerifyRaw reports whether a signature over a hash is a key's. It is r and s, big-endian and
// as long as the curve's numbers.
func VerifyRaw(key *ecdsa.PublicKey, hash, signature []byte) bool {
	n := (key.Curve.Params().BitSize + 7) / 8
	if len(signature) != 2*n {
		return false
	}
	r, s := new(big.Int).SetBytes(signature[:n]), new(big.Int).SetBytes(signature[n:])
	return ecdsa.Verify(key, hash, r, s)
}
