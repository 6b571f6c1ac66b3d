package swtpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// CA signs the certificates of this host's TPMs. It proves a host's word: whoever has its key, as
// the host's owner has, can make a TPM's certificate for anything.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Files of a CA.
const (
	caKey  = "key.pem"
	caCert = "cert.pem"
)

const certificateType = "CERTIFICATE"

// OpenCA reads a host's CA from a directory, and makes it there at the first time. The caller
// sees to it that only one process does so at a time.
func OpenCA(dir string) (*CA, error) {
	cert, err := os.ReadFile(filepath.Join(dir, caCert))
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeCA(dir); err != nil {
			return nil, fmt.Errorf("make this host's CA for TPMs: %w", err)
		}
		cert, err = os.ReadFile(filepath.Join(dir, caCert))
	}
	if err != nil {
		return nil, err
	}
	key, err := os.ReadFile(filepath.Join(dir, caKey))
	if err != nil {
		return nil, err
	}
	defer clear(key)
	ca := &CA{}
	certBlock, _ := pem.Decode(cert)
	keyBlock, _ := pem.Decode(key)
	if certBlock == nil || keyBlock == nil {
		return nil, fmt.Errorf("%s: this host's CA for TPMs is damaged", dir)
	}
	if ca.cert, err = x509.ParseCertificate(certBlock.Bytes); err == nil {
		ca.key, err = x509.ParseECPrivateKey(keyBlock.Bytes)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: this host's CA for TPMs is damaged: %w", dir, err)
	}
	return ca, nil
}

// CertificateOf reads the certificate of a host's CA as a PEM block.
func CertificateOf(dir string) ([]byte, error) { return os.ReadFile(filepath.Join(dir, caCert)) }

// forEver is the end of certificates that have none (RFC 5280, section 4.1.2.5).
var forEver = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

func makeCA(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := newSerial()
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: serial, NotBefore: time.Now().Add(-time.Hour), NotAfter: forEver,
		Subject: pkix.Name{
			CommonName:         "vmlatch TPM CA of a host",
			OrganizationalUnit: []string{"made by a host, proves a host's word"},
		},
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true,
		MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	defer clear(private)
	// The certificate comes last: it says that all is there.
	for _, f := range []struct {
		name, kind string
		data       []byte
	}{{caKey, "EC PRIVATE KEY", private}, {caCert, certificateType, der}} {
		next := filepath.Join(dir, f.name+".new")
		err := writeSynced(next, pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.data}))
		if err == nil {
			err = os.Rename(next, filepath.Join(dir, f.name))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writeSynced writes a file that survives a loss of power once it has its name.
func writeSynced(name string, b []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

func newSerial() (*big.Int, error) {
	b := make([]byte, 19) // positive, and at most 20 bytes
	if _, err := rand.Read(b); err != nil {
		return nil, err
	}
	b[0] |= 1
	return new(big.Int).SetBytes(b), nil
}

// Object identifiers (TCG EK Credential Profile 2.5, section 3.2.16).
var (
	oidManufacturer  = asn1.ObjectIdentifier{2, 23, 133, 2, 1}
	oidModel         = asn1.ObjectIdentifier{2, 23, 133, 2, 2}
	oidVersion       = asn1.ObjectIdentifier{2, 23, 133, 2, 3}
	oidSpecification = asn1.ObjectIdentifier{2, 23, 133, 2, 16}
	oidEKCertificate = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
	oidAttributes    = asn1.ObjectIdentifier{2, 5, 29, 9}
	oidAltName       = asn1.ObjectIdentifier{2, 5, 29, 17}
)

// Certify signs a certificate for an endorsement key (TCG EK Credential Profile 2.5, section 3).
func (ca *CA) Certify(key crypto.PublicKey, about About) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	name, err := altName(about)
	if err != nil {
		return nil, err
	}
	attributes, err := specification(about)
	if err != nil {
		return nil, err
	}
	usage := x509.KeyUsageKeyAgreement
	if _, ok := key.(*rsa.PublicKey); ok {
		usage = x509.KeyUsageKeyEncipherment
	}
	template := &x509.Certificate{
		SerialNumber: serial, NotBefore: time.Now().Add(-time.Hour), NotAfter: forEver,
		KeyUsage: usage, BasicConstraintsValid: true, UnknownExtKeyUsage: []asn1.ObjectIdentifier{oidEKCertificate},
		ExtraExtensions: []pkix.Extension{
			{Id: oidAltName, Critical: true, Value: name}, // as the subject is empty
			{Id: oidAttributes, Value: attributes},
		},
	}
	return x509.CreateCertificate(rand.Reader, template, ca.cert, key, ca.key)
}

// altName names the TPM by what it says of itself.
func altName(a About) ([]byte, error) {
	utf8 := func(oid asn1.ObjectIdentifier, text string) pkix.RelativeDistinguishedNameSET {
		return pkix.RelativeDistinguishedNameSET{{
			Type: oid, Value: asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(text)},
		}}
	}
	directory, err := asn1.Marshal(pkix.RDNSequence{
		utf8(oidManufacturer, fmt.Sprintf("id:%08X", a.Manufacturer)), utf8(oidModel, a.Model),
		utf8(oidVersion, fmt.Sprintf("id:%08X", a.Version)),
	})
	if err != nil {
		return nil, err
	}
	const directoryName = 4 // RFC 5280, section 4.2.1.6
	general := asn1.RawValue{
		Class: asn1.ClassContextSpecific, Tag: directoryName, IsCompound: true, Bytes: directory,
	}
	return asn1.Marshal([]asn1.RawValue{general})
}

// specification says which version of the TPM's specification it follows.
func specification(a About) ([]byte, error) {
	type attribute struct {
		ID     asn1.ObjectIdentifier
		Values []specificationValue `asn1:"set"`
	}
	return asn1.Marshal([]attribute{{oidSpecification, []specificationValue{{"2.0", int(a.Level), int(a.Revision)}}}})
}

type specificationValue struct {
	Family   string `asn1:"utf8"`
	Level    int
	Revision int
}
