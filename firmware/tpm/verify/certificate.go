// Package verify verifies quotes, and whose a TPM is. It is for owners: no guest links it.
//
// Files: quote.go, certificate.go, registers.go.
//
// Sources: see package quote.
package verify

import (
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/vmlatch/vmlatch/firmware/tpm/quote"
)

// Object identifiers of certificates (TCG EK Credential Profile, section 3.2; RFC 5280).
var (
	oidEKCertificate  = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
)

// Certificate is an error unless the certificate of an identity's endorsement key is signed by
// one of these roots, at a time.
func Certificate(id *quote.Identity, roots *x509.CertPool, at time.Time) error {
	if len(id.Certificate) == 0 {
		return fmt.Errorf("%w: there is no certificate for it", quote.ErrKey)
	}
	cert, err := x509.ParseCertificate(id.Certificate)
	if err != nil {
		return fmt.Errorf("%w: its certificate: %w", quote.ErrKey, err)
	}
	// Go does not read the names that this extension has, which are those of the TPM's model.
	cert.UnhandledCriticalExtensions = slices.DeleteFunc(cert.UnhandledCriticalExtensions,
		func(o asn1.ObjectIdentifier) bool { return o.Equal(oidSubjectAltName) })
	if !slices.ContainsFunc(cert.UnknownExtKeyUsage, oidEKCertificate.Equal) {
		return fmt.Errorf("%w: its certificate is not one of an endorsement key", quote.ErrKey)
	}
	if _, err := cert.Verify(x509.VerifyOptions{
		Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}); err != nil {
		return fmt.Errorf("%w: its certificate: %w", quote.ErrKey, err)
	}
	ek, err := quote.Public(id.EK)
	if err != nil {
		return err
	}
	got, err := tpm2.Pub(*ek)
	if err != nil {
		return fmt.Errorf("%w: %w", quote.ErrKey, err)
	}
	if k, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(got) {
		return fmt.Errorf("%w: its certificate is for another key", quote.ErrKey)
	}
	a := ek.ObjectAttributes
	if !a.Restricted || !a.Decrypt || a.SignEncrypt || !a.FixedTPM || !a.FixedParent {
		return fmt.Errorf(
			"%w: it is not an endorsement key: it could decrypt other things, or leave its TPM",
			quote.ErrKey,
		)
	}
	return nil
}
