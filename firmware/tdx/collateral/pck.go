package collateral

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/refusal"
)

// Components is how many security versions a TCB has.
const Components = 16

// PCK is what the certificate of a platform's key says of the platform (PCK profile, chapter
// 1.3.5, extension 1.2.840.113741.1.13.1).
type PCK struct {
	PPID       []byte            // 16 bytes: the platform
	SVN        [Components]uint8 // of SGX
	PCESVN     uint16
	CPUSVN     []byte // 16 bytes
	PCEID      []byte // 2 bytes
	FMSPC      []byte // 6 bytes: the family of platforms
	InstanceID []byte // 16 bytes, of platforms with several packages; nil for others
	Key        *ecdsa.PublicKey
	X509       *x509.Certificate
}

// Elements of the extension, behind its own identifier.
const (
	elemPPID     = 1
	elemTCB      = 2
	elemPCEID    = 3
	elemFMSPC    = 4
	elemInstance = 6
	elemPCESVN   = 17 // of the TCB, behind the 16 components
	elemCPUSVN   = 18
)

var oidSGX = asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}

// ParsePCK reads the certificate of a platform's key. The error is a refusal.
func ParsePCK(x *x509.Certificate) (*PCK, error) {
	bad := func(format string, args ...any) error {
		return refusal.New(refusal.PCKExtension).Because(format, args...)
	}
	key, ok := x.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, bad("its key is not ECDSA P-256")
	}
	p := &PCK{Key: key, X509: x}
	var value []byte
	for _, e := range x.Extensions {
		if e.Id.Equal(oidSGX) {
			if value != nil {
				return nil, bad("the extension stands there twice")
			}
			value = e.Value
		}
	}
	if value == nil {
		return nil, bad("the extension %v is missing", oidSGX)
	}
	elements, err := elementsOf(value, oidSGX)
	if err != nil {
		return nil, bad("%v", err)
	}
	for _, f := range []struct {
		element, size int
		to            *[]byte
		optional      bool
	}{
		{elemPPID, 16, &p.PPID, false},
		{elemPCEID, 2, &p.PCEID, false},
		{elemFMSPC, 6, &p.FMSPC, false},
		{elemInstance, 16, &p.InstanceID, true},
	} {
		raw, ok := elements[f.element]
		if !ok && f.optional {
			continue
		}
		if *f.to, err = octets(raw, f.size); err != nil {
			return nil, bad("element %d: %v", f.element, err)
		}
	}
	if err := p.readTCB(elements[elemTCB].FullBytes); err != nil {
		return nil, bad("TCB: %v", err)
	}
	return p, nil
}

// readTCB reads the security versions.
func (p *PCK) readTCB(der []byte) error {
	parts, err := elementsOf(der, append(oidSGX[:len(oidSGX):len(oidSGX)], elemTCB))
	if err != nil {
		return err
	}
	for i := range p.SVN {
		n, err := number(parts[i+1], 0xff)
		if err != nil {
			return fmt.Errorf("component %d: %w", i+1, err)
		}
		p.SVN[i] = uint8(n)
	}
	n, err := number(parts[elemPCESVN], 0xffff)
	if err != nil {
		return fmt.Errorf("PCESVN: %w", err)
	}
	p.PCESVN = uint16(n)
	p.CPUSVN, err = octets(parts[elemCPUSVN], 16)
	return err
}

// elementsOf reads a SEQUENCE of pairs of an identifier under a prefix and a value, by the last
// part of the identifier.
func elementsOf(der []byte, prefix asn1.ObjectIdentifier) (map[int]asn1.RawValue, error) {
	var pairs []struct {
		ID    asn1.ObjectIdentifier
		Value asn1.RawValue
	}
	if rest, err := asn1.Unmarshal(der, &pairs); err != nil || len(rest) > 0 {
		return nil, fmt.Errorf("no sequence of pairs: %v", err)
	}
	elements := map[int]asn1.RawValue{}
	for _, p := range pairs {
		if len(p.ID) != len(prefix)+1 || !p.ID[:len(prefix)].Equal(prefix) {
			return nil, fmt.Errorf("element %v", p.ID)
		}
		last := p.ID[len(prefix)]
		if _, twice := elements[last]; twice {
			return nil, fmt.Errorf("element %v stands there twice", p.ID)
		}
		elements[last] = p.Value
	}
	return elements, nil
}

func octets(v asn1.RawValue, size int) ([]byte, error) {
	if v.Tag != asn1.TagOctetString || v.Class != asn1.ClassUniversal || len(v.Bytes) != size {
		return nil, fmt.Errorf("no OCTET STRING of %d bytes", size)
	}
	return v.Bytes, nil
}

func number(v asn1.RawValue, most int) (n int, err error) {
	if rest, err := asn1.Unmarshal(v.FullBytes, &n); err != nil || len(rest) > 0 || n < 0 || n > most {
		return 0, fmt.Errorf("no number from 0 to %d", most)
	}
	return n, nil
}

// IDs are the names that a platform may have on an owner's list: the SHA-256 of its PPID, the
// PPID itself, and its instance ID if it has one.
func (p *PCK) IDs() [][]byte {
	sum := sha256.Sum256(p.PPID)
	ids := [][]byte{sum[:], p.PPID}
	if p.InstanceID != nil {
		ids = append(ids, p.InstanceID)
	}
	return ids
}
