package kds

import (
	"crypto/x509"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/pki"
)

// CRL is AMD's list of revoked authorities of one line (KDS, chapter 4.3). It cannot name
// endorsement certificates: their serial numbers are all 0.
type CRL struct {
	Line Line // by the issuer's name, which is not proven yet; "" for the list of another issuer
	X509 *x509.RevocationList
}

// ParseCRL reads a list in DER. The error is a refusal.
func ParseCRL(der []byte) (*CRL, error) {
	x, err := pki.ParseCRL(der)
	if err != nil {
		return nil, err
	}
	name, _ := strings.CutPrefix(x.Issuer.CommonName, "ARK-")
	l, _ := lineNamed(name)
	return &CRL{Line: l, X509: x}, nil
}

// Signed is a refusal unless a list is signed by the root of its line.
func (r *Roots) Signed(crl *CRL) error {
	ark, _, err := r.over(crl.Line, VCEK)
	if err != nil {
		return err
	}
	return pki.CRLSigned(crl.X509, ark)
}

// NotRevoked is a refusal unless a list is by the root of the certificate's line, and revokes none
// of the authorities above the certificate. Its dates are not judged.
func (r *Roots) NotRevoked(c *Certificate, crl *CRL) error {
	ark, inter, err := r.over(c.Line, c.Signer)
	if err != nil {
		return err
	}
	if err := pki.CRLSigned(crl.X509, ark); err != nil {
		return err
	}
	return pki.NotListed(crl.X509, inter, ark)
}
