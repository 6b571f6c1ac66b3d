package swtpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCA(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	ca, err := OpenCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, caKey)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's file: %v, %v", info, err)
	}
	again, err := OpenCA(dir)
	if err != nil || !again.cert.Equal(ca.cert) {
		t.Fatalf("another CA the second time: %v", err)
	}
	ecc, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	text, err := CertificateOf(dir)
	if block, _ := pem.Decode(text); err != nil || block == nil || !roots.AppendCertsFromPEM(text) {
		t.Fatalf("the certificate cannot be decoded: %v", err)
	}
	for usage, key := range map[x509.KeyUsage]crypto.PublicKey{
		x509.KeyUsageKeyAgreement: ecc.Public(), x509.KeyUsageKeyEncipherment: rsaKey.Public(),
	} {
		der, err := ca.Certify(
			key,
			About{Manufacturer: 0x49424d00, Model: "SWTPM", Version: 0x20191023, Revision: 164},
		)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		if c.KeyUsage != usage || c.IsCA || len(c.UnknownExtKeyUsage) != 1 || c.NotAfter.Year() != 9999 ||
			len(c.SerialNumber.Bytes()) > 20 || c.Subject.String() != "" {
			t.Errorf("%+v", c)
		}
		if len(c.UnhandledCriticalExtensions) != 1 { // Go's word about names that are directories
			t.Errorf("critical extensions that Go does not know: %v", c.UnhandledCriticalExtensions)
		}
		for _, want := range []string{"id:49424D00", "SWTPM", "id:20191023", "2.0"} {
			if !strings.Contains(string(der), want) {
				t.Errorf("the certificate lacks %q", want)
			}
		}
		c.UnhandledCriticalExtensions = nil
		any := []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
		if _, err := c.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: any}); err != nil {
			t.Error(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, caCert), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenCA(dir); err == nil {
		t.Error("a damaged CA is used")
	}
}
