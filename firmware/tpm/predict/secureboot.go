package predict

import (
	"bytes"
	"crypto/x509"
	"debug/pe"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/guid"
	"github.com/vmlatch/vmlatch/firmware/uefivar"
)

// errAuthority is wrapped by errors about images whose authority is not found.
var errAuthority = errors.New("which entry of db lets this image run is not known")

// guidX509 marks a list of certificates (UEFI 2.10, section 32.4.1, EFI_CERT_X509_GUID).
var guidX509 = guid.MustParse("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")

// signatureData are an owner's GUID and a certificate, or a hash (UEFI 2.10, section 32.4.1).
type signatureData []byte

func (s signatureData) certificate() []byte { return s[16:] }

// certificatesOf are the entries of a db that are certificates; other is how many entries of
// another kind there are, as hashes of images.
func certificatesOf(db []byte) (list []signatureData, other int, err error) {
	le := binary.LittleEndian
	const header = 28
	for len(db) > 0 {
		if len(db) < header {
			return nil, 0, fmt.Errorf("%w: a list of db is cut off", errAuthority)
		}
		size, extra, each := le.Uint32(db[16:]), le.Uint32(db[20:]), le.Uint32(db[24:])
		if uint64(size) > uint64(len(db)) || uint64(size) < header+uint64(extra) || each <= 16 {
			return nil, 0, fmt.Errorf("%w: a list of db does not fit", errAuthority)
		}
		entries := db[header+extra : size]
		for ; len(entries) >= int(each); entries = entries[each:] {
			if guid.GUID(db[:16]) == guidX509 {
				list = append(list, signatureData(entries[:each]))
			} else {
				other++
			}
		}
		db = db[size:]
	}
	return list, other, nil
}

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
func authority(db *uefivar.Variable, image []byte) (signatureData, error) {
	if db == nil {
		return nil, fmt.Errorf("%w: there is no db", errAuthority)
	}
	list, other, err := certificatesOf(db.Data)
	if err != nil {
		return nil, err
	}
	if other > 0 {
		return nil, fmt.Errorf("%w: db has hashes of images too", errAuthority)
	}
	signers, err := signersOf(image)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errAuthority, err)
	}
	for _, entry := range list {
		trusted, err := x509.ParseCertificate(entry.certificate())
		if err != nil {
			continue
		}
		for _, s := range signers {
			if s.Equal(trusted) || signed(s, trusted) {
				return entry, nil
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
