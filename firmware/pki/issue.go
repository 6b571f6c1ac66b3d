package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"slices"
	"time"
)

// Authority is a key with its certificate: for emulators and tests.
type Authority struct {
	Key  crypto.Signer
	Cert *x509.Certificate
}

// SelfSigned makes a root.
func SelfSigned(key crypto.Signer, template *x509.Certificate) (*Authority, error) {
	return issue(key, template, template, key)
}

// Issue makes a certificate for a key.
func (a *Authority) Issue(key crypto.Signer, template *x509.Certificate) (*Authority, error) {
	return issue(key, template, a.Cert, a.Key)
}

func issue(key crypto.Signer, template, above *x509.Certificate, signer crypto.Signer) (*Authority, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, above, key.Public(), signer)
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(der)
	return &Authority{key, c}, err
}

// Revoke makes a list of revoked serial numbers, in DER. Authorities with RSA keys sign with
// RSASSA-PSS, as AMD's do.
func (a *Authority) Revoke(from, until time.Time, serials ...*big.Int) ([]byte, error) {
	template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: from, NextUpdate: until}
	if _, ok := a.Key.(*rsa.PrivateKey); ok {
		template.SignatureAlgorithm = x509.SHA384WithRSAPSS
	}
	for _, n := range serials {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: n, RevocationTime: from})
	}
	return x509.CreateRevocationList(rand.Reader, template, a.Cert, a.Key)
}

// PEM is the text of certificates.
func PEM(chain ...*x509.Certificate) (text []byte) {
	for _, c := range chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return text
}

// SignRaw signs the SHA-256 of bytes. The signature is as VerifyRaw takes it.
func SignRaw(key *ecdsa.PrivateKey, b []byte) ([]byte, error) {
	sum := sha256.Sum256(b)
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		return nil, err
	}
	n := (key.Curve.Params().BitSize + 7) / 8
	return slices.Concat(r.FillBytes(make([]byte, n)), s.FillBytes(make([]byte, n))), nil
}
