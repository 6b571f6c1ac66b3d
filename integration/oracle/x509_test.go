package oracle

import "crypto/x509"

// parse reads a certificate that this package's tests have made.
func parse(der []byte) *x509.Certificate {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return c
}
