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

// signersOf are the certificates in each signature of an image (Microsoft, PE Format, "The
// Attribute Certificate Table"; RFC 5652, section 5.1).
func signersOf(image []byte) (list [][]*x509.Certificate, err error) {
	f, err := pe.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h, ok := f.OptionalHeader.(*pe.OptionalHeader64)
	if !ok {
		return nil, errors.New("it is not for 64 bits")
	}
	const security, header, aligned = 4, 8, 8
	dir := h.DataDirectory[security]
	at, size := uint64(dir.VirtualAddress), uint64(dir.Size)
	if size < header || at+size > uint64(len(image)) {
		return nil, errors.New("it has no signature")
	}
	for rest := image[at : at+size]; len(rest) >= header; {
		length := uint64(binary.LittleEndian.Uint32(rest))
		const pkcs7 = 2
		if length < header || length > uint64(len(rest)) || binary.LittleEndian.Uint16(rest[6:]) != pkcs7 {
			return nil, errors.New("it has a signature of an unknown kind")
		}
		certs, err := signersIn(rest[header:length])
		if err != nil {
			return nil, fmt.Errorf("its signature cannot be read: %w", err)
		}
		list = append(list, certs)
		rest = rest[min(uint64(len(rest)), (length+aligned-1)&^(aligned-1)):]
	}
	return list, nil
}

// signersIn are the certificates of a PKCS #7 signature.
func signersIn(b []byte) ([]*x509.Certificate, error) {
	var outer struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue `asn1:"explicit,tag:0"`
	}
	if _, err := asn1.Unmarshal(b, &outer); err != nil {
		return nil, err
	}
	var signed struct {
		Version      int
		Algorithms   asn1.RawValue
		Content      asn1.RawValue
		Certificates asn1.RawValue `asn1:"optional,tag:0"`
		More         asn1.RawValue `asn1:"optional"`
		Signers      asn1.RawValue `asn1:"optional"`
	}
	if _, err := asn1.Unmarshal(outer.Content.Bytes, &signed); err != nil {
		return nil, err
	}
	return x509.ParseCertificates(signed.Certificates.Bytes)
}

// authority is the entry of db by which firmware lets a signed image run: the first that is, or has
// signed, a certificate in the first of the image's signatures for which there is one.
func authority(db *uefivar.Variable, image []byte) ([]byte, error) {
	if db == nil {
		return nil, fmt.Errorf("%w: there is no db", errAuthority)
	}
	list, err := uefivar.Signatures(db.Data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errAuthority, err)
	}
	signatures, err := signersOf(image)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errAuthority, err)
	}
	for _, signers := range signatures {
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
	}
	return nil, fmt.Errorf("%w: none of it has signed the image: firmware does not start it, or not in a way that"+
		" is measured", errAuthority)
}

// signed reports whether one certificate has signed another. Whether it may is not asked: firmware
// does not either.
func signed(c, by *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, by.RawSubject) &&
		by.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}
