package predict

import (
	"bytes"
	"crypto/x509"
	"debug/pe"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/uefivar"
)

// errAuthority is wrapped by errors about images whose authority is not found.
var errAuthority = errors.New("which entry of db lets this image run is not known")

// signersOf are the certificates in the first signature of an image (Microsoft, PE Format, "The
// Attribute Certificate Table"; RFC 5652, section 5.1).
func signersOf(image []byte) ([]*x509.Certificate, error) {
	f, err := pe.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h, ok := f.OptionalHeader.(*pe.OptionalHeader64)
	if !ok {
		return nil, errors.New("it is not for 64 bits")
	}
	const security, header = 4, 8
	dir := h.DataDirectory[security]
	at, size := uint64(dir.VirtualAddress), uint64(dir.Size)
	if size < header || at+size > uint64(len(image)) {
		return nil, errors.New("it has no signature")
	}
	length := uint64(binary.LittleEndian.Uint32(image[at:]))
	if length < header || length > size || binary.LittleEndian.Uint16(image[at+6:]) != 2 { // PKCS #7
		return nil, errors.New("its signature is of an unknown kind")
	}
	var outer struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue `asn1:"explicit,tag:0"`
	}
	if _, err := asn1.Unmarshal(image[at+header:at+length], &outer); err != nil {
		return nil, err
	}
	var signed struct {
		Version      int
		Algorithms   asn1.RawValue
		Content      asn1.RawValue
		Certificates asn1.RawValue `asn1:"tag:0"`
	}
	if _, err := asn1.Unmarshal(outer.Content.Bytes, &signed); err != nil {
		return nil, err
	}
	return x509.ParseCertificates(signed.Certificates.Bytes)
}

// authority is the entry of db by which firmware lets a signed image run: the first one that is, or
// has signed, a certificate in the image's signature.
func authority(db *uefivar.Variable, image []byte) ([]byte, error) {
	if db == nil {
		return nil, fmt.Errorf("%w: there is no db", errAuthority)
	}
	list, err := uefivar.Signatures(db.Data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errAuthority, err)
	}
	signers, err := signersOf(image)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errAuthority, err)
	}
	for _, entry := range list {
		if entry.Kind != uefivar.GUIDX509 {
			return nil, fmt.Errorf("%w: db has hashes of images too", errAuthority)
		}
		trusted, err := x509.ParseCertificate(entry.Data)
		if err != nil {
			continue
		}
		for _, s := range signers {
			if s.Equal(trusted) || signed(s, trusted) {
				return entry.Entry, nil
			}
		}
	}
	return nil, fmt.Errorf("%w: none of it has signed the image, so firmware will not start it", errAuthority)
}

// signed reports whether one certificate has signed another. Whether it may is not asked: firmware
// does not either.
func signed(c, by *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, by.RawSubject) &&
		by.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}
