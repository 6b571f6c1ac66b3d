package collateral

import (
	"bytes"
	"crypto/x509"
	_ "embed"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/vmlatch/vmlatch/firmware/pki"
	"github.com/vmlatch/vmlatch/firmware/refusal"
)

//go:embed intel.pem
var intelPEM []byte

// Root is the authority above all of Intel's certificates.
type Root struct {
	Emulated bool // a test root, whose certificates prove nothing
	X509     *x509.Certificate
}

// Intel returns Intel's own root, the SGX Root CA, which is compiled in.
func Intel() *Root { return intel() }

var intel = sync.OnceValue(func() *Root {
	r, err := ParseRoot(intelPEM)
	if err != nil {
		panic("collateral: Intel's root: " + err.Error())
	}
	r.Emulated = false
	return r
})

// ErrRoot is wrapped by errors about files of roots.
var ErrRoot = errors.New("not a file with a root like Intel's")

// NameRoot is the common name of the root.
const NameRoot = "Intel SGX Root CA"

// Common names of the others (PCK profile, chapter 1.3).
const (
	namePlatform   = "Intel SGX PCK Platform CA"
	nameProcessor  = "Intel SGX PCK Processor CA"
	namePCK        = "Intel SGX PCK Certificate"
	nameTCBSigning = "Intel SGX TCB Signing"
)

// ParseRoot reads a test root: a PEM certificate with the name that Intel's has. Others, and
// other blocks, are left alone.
func ParseRoot(text []byte) (*Root, error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		x, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrRoot, err)
		}
		if x.Subject.CommonName == NameRoot {
			return &Root{Emulated: true, X509: x}, nil
		}
	}
	return nil, fmt.Errorf("%w: it has no certificate named %s", ErrRoot, NameRoot)
}

// is reports whether a certificate is of the root's key.
func (r *Root) is(x *x509.Certificate) bool {
	return bytes.Equal(x.RawSubjectPublicKeyInfo, r.X509.RawSubjectPublicKeyInfo)
}

// signed checks a chain of a certificate and its authorities up to this root, which may stand
// at its end, by keys and names.
func (r *Root) signed(chain []*x509.Certificate, names ...[]string) error {
	if len(chain) > 0 && r.is(chain[len(chain)-1]) {
		chain = chain[:len(chain)-1]
	}
	if len(chain) != len(names) {
		return refusal.New(refusal.Chain).Because("there are %d certificates below the root, must be %d",
			len(chain), len(names))
	}
	for i, x := range chain {
		parent := r.X509
		if i+1 < len(chain) {
			parent = chain[i+1]
		}
		if !slices.Contains(names[i], x.Subject.CommonName) {
			return refusal.New(refusal.Chain).Because("a certificate is %q, must be %q",
				x.Subject.CommonName, names[i][0])
		}
		if err := pki.SignedBy(x, parent); err != nil {
			return err
		}
	}
	return nil
}

// PCKChain checks the chain of a platform's certificate, by signatures and names, and returns
// the certificate and its authority.
func (r *Root) PCKChain(chain []*x509.Certificate) (leaf, ca *x509.Certificate, err error) {
	if err := r.signed(chain, []string{namePCK}, []string{namePlatform, nameProcessor}); err != nil {
		return nil, nil, err
	}
	return chain[0], chain[1], nil
}

// PCKAuthority checks the chain of the authority over platforms' certificates, and returns it.
func (r *Root) PCKAuthority(chain []byte) (*x509.Certificate, error) {
	list, err := pki.ParsePEM(chain)
	if err != nil {
		return nil, refusal.New(refusal.Chain).Because("%v", err)
	}
	if err := r.signed(list, []string{namePlatform, nameProcessor}); err != nil {
		return nil, err
	}
	return list[0], nil
}

// NoRoot is a root under which nothing is.
func NoRoot() *Root { return &Root{Emulated: true, X509: &x509.Certificate{}} }
