package sev

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	_ "crypto/sha256" // the hashes that signatures name
	_ "crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"

	"github.com/vmlatch/vmlatch/firmware/internal/octets"
)

// Usage says what a certificate's key is for (SEV API, appendix C.4, table 113).
type Usage uint32

// Key usages (SEV API, appendix C.4).
const (
	UsageARK     Usage = 0x0000 // AMD root key
	UsageASK     Usage = 0x0013 // AMD SEV signing key, one for a product line
	UsageInvalid Usage = 0x1000 // an unused signature slot
	UsageOCA     Usage = 0x1001 // the platform owner's certificate authority
	UsagePEK     Usage = 0x1002 // platform endorsement key
	UsagePDH     Usage = 0x1003 // platform Diffie-Hellman key; also a guest owner's
	UsageCEK     Usage = 0x1004 // chip endorsement key
)

var usageNames = map[Usage]string{
	UsageARK: "ARK", UsageASK: "ASK", UsageInvalid: "none", UsageOCA: "OCA",
	UsagePEK: "PEK", UsagePDH: "PDH", UsageCEK: "CEK",
}

func (u Usage) String() string {
	if n, ok := usageNames[u]; ok {
		return n
	}
	return fmt.Sprintf("usage %#x", uint32(u))
}

// Algo names a key's or a signature's algorithm (SEV API, appendix C.4, table 114).
type Algo uint32

// Algorithms (SEV API, appendix C.4).
const (
	AlgoNone        Algo = 0x000
	AlgoRSASHA256   Algo = 0x001
	AlgoECDSASHA256 Algo = 0x002
	AlgoECDHSHA256  Algo = 0x003
	AlgoRSASHA384   Algo = 0x101
	AlgoECDSASHA384 Algo = 0x102
	AlgoECDHSHA384  Algo = 0x103
)

func (a Algo) hash() crypto.Hash {
	if a&0x100 != 0 {
		return crypto.SHA384
	}
	return crypto.SHA256
}

// SessionSize is the length in bytes of a launch session (SEV API, chapter 6.2,
// table 44).
const SessionSize = 128

// Layout of an SEV certificate (SEV API, appendix C.1, table 108).
const (
	CertificateSize = 2084 // bytes

	offVersion  = 0
	offAPIMajor = 4
	offAPIMinor = 5
	offUsage    = 8
	offAlgo     = 12
	offPubkey   = 16 // 1028 bytes: curve, then Qx and Qy
	offSig1     = 1044
	offSig2     = 1564
	sigSlotSize = 520 // usage, algorithm, 512 bytes of signature
	pubkeySize  = offSig1 - offPubkey

	p384Size  = 48 // bytes of a coordinate of P-384
	coordSize = 72 // bytes of one little-endian coordinate or of r or s
	curveP384 = 2  // SEV API, appendix C.2, table 110
)

// ErrCertificate is wrapped by every error about a certificate's content.
var ErrCertificate = errors.New("certificate")

// Certificate is a certificate of an SEV platform: OCA, PEK, PDH or CEK, or the
// Diffie-Hellman certificate of a guest owner. Its key is on P-384.
type Certificate struct {
	Usage Usage
	Algo  Algo
	Key   *ecdsa.PublicKey
	sigs  [2]signature
	raw   [CertificateSize]byte
}

type signature struct {
	usage Usage
	algo  Algo
	value []byte // 512 bytes, as stored
}

// ParseCertificate reads a certificate. Bytes without a meaning in its signed part,
// the first 1044 bytes, are kept and nothing is read from them: tools in use leave some
// behind the key, and the signature covers them. Outside of it, where nothing is signed,
// padding and unused signature slots must be zero, so that no bit of a certificate can
// change without a check noticing.
func ParseCertificate(b []byte) (*Certificate, error) {
	if len(b) != CertificateSize {
		return nil, fmt.Errorf("%w: %d bytes, must be %d", ErrCertificate, len(b), CertificateSize)
	}
	c := &Certificate{}
	copy(c.raw[:], b)
	le := binary.LittleEndian
	if v := le.Uint32(b[offVersion:]); v != 1 {
		return nil, fmt.Errorf("%w: version %d, must be 1", ErrCertificate, v)
	}
	c.Usage, c.Algo = Usage(le.Uint32(b[offUsage:])), Algo(le.Uint32(b[offAlgo:]))
	if err := c.parseKey(b[offPubkey : offPubkey+pubkeySize]); err != nil {
		return nil, err
	}
	for i, off := range []int{offSig1, offSig2} {
		slot := b[off : off+sigSlotSize]
		s := signature{Usage(le.Uint32(slot)), Algo(le.Uint32(slot[4:])), slices.Clone(slot[8:])}
		if s.usage == UsageInvalid && (s.algo != AlgoNone || !octets.AllZero(s.value)) {
			return nil, fmt.Errorf("%w: %v: signature %d is unused but not empty", ErrCertificate, c.Usage, i+1)
		}
		c.sigs[i] = s
	}
	return c, nil
}

func (c *Certificate) parseKey(b []byte) error {
	switch c.Algo {
	case AlgoECDSASHA256, AlgoECDHSHA256, AlgoECDSASHA384, AlgoECDHSHA384:
	default:
		return fmt.Errorf("%w: %v: key algorithm %#x is not supported", ErrCertificate, c.Usage, uint32(c.Algo))
	}
	if curve := binary.LittleEndian.Uint32(b); curve != curveP384 {
		return fmt.Errorf("%w: %v: curve %d is not P-384", ErrCertificate, c.Usage, curve)
	}
	point := []byte{4} // uncompressed: X and Y, big-endian (SEC 1, section 2.3.3)
	for _, coord := range [][]byte{b[4 : 4+coordSize], b[4+coordSize : 4+2*coordSize]} {
		if !octets.AllZero(coord[p384Size:]) {
			return fmt.Errorf("%w: %v: a coordinate has more than %d bytes", ErrCertificate, c.Usage, p384Size)
		}
		be := slices.Clone(coord[:p384Size])
		slices.Reverse(be)
		point = append(point, be...)
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P384(), point)
	if err != nil {
		return fmt.Errorf("%w: %v: key: %v", ErrCertificate, c.Usage, err)
	}
	c.Key = key
	return nil
}

// NewCertificate makes an unsigned certificate for a P-384 key.
func NewCertificate(key *ecdsa.PublicKey, usage Usage, algo Algo, b Build) (*Certificate, error) {
	if key.Curve != elliptic.P384() {
		return nil, fmt.Errorf("%w: %v: key is not on P-384", ErrCertificate, usage)
	}
	var raw [CertificateSize]byte
	le := binary.LittleEndian
	le.PutUint32(raw[offVersion:], 1)
	raw[offAPIMajor], raw[offAPIMinor] = b.Major, b.Minor
	le.PutUint32(raw[offUsage:], uint32(usage))
	le.PutUint32(raw[offAlgo:], uint32(algo))
	le.PutUint32(raw[offPubkey:], curveP384)
	point, err := key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("%w: %v: key: %v", ErrCertificate, usage, err)
	}
	for i, coord := range [][]byte{point[1 : 1+p384Size], point[1+p384Size:]} {
		slices.Reverse(coord)
		copy(raw[offPubkey+4+i*coordSize:], coord)
	}
	le.PutUint32(raw[offSig1:], uint32(UsageInvalid))
	le.PutUint32(raw[offSig2:], uint32(UsageInvalid))
	return ParseCertificate(raw[:])
}

// API is the version of the firmware, or 0.0 of the tool, that made the certificate.
func (c *Certificate) API() (major, minor uint8) { return c.raw[offAPIMajor], c.raw[offAPIMinor] }

// Signed reports whether the certificate carries a signature, which it does not check.
func (c *Certificate) Signed() bool { return c.signatures() > 0 }

// Unsigned returns the certificate with both signature slots unused, as platforms
// export their CEK (SEV API, chapter 5.8, PDH_CERT_EXPORT).
func (c *Certificate) Unsigned() *Certificate {
	u := *c
	for slot := range u.sigs {
		u.setSignature(slot, signature{UsageInvalid, AlgoNone, make([]byte, sigSlotSize-8)})
	}
	return &u
}

// Bytes returns the certificate's 2084 bytes.
func (c *Certificate) Bytes() []byte { return slices.Clone(c.raw[:]) }

// SignECDSA puts an ECDSA signature with SHA-256 into slot 0 or 1.
func (c *Certificate) SignECDSA(rand io.Reader, slot int, signer Usage, key *ecdsa.PrivateKey) error {
	digest := hashOf(crypto.SHA256, c.raw[:offSig1])
	r, s, err := ecdsa.Sign(rand, key, digest)
	if err != nil {
		return fmt.Errorf("sign %v: %w", c.Usage, err)
	}
	value := make([]byte, sigSlotSize-8)
	putLE(value[:coordSize], r)
	putLE(value[coordSize:2*coordSize], s)
	c.setSignature(slot, signature{signer, AlgoECDSASHA256, value})
	return nil
}

// SignRSA puts an RSA-PSS signature with SHA-256 into slot 0 or 1.
func (c *Certificate) SignRSA(rand io.Reader, slot int, signer Usage, key *rsa.PrivateKey) error {
	sig, err := rsa.SignPSS(rand, key, crypto.SHA256, hashOf(crypto.SHA256, c.raw[:offSig1]), pssOptions)
	if err != nil {
		return fmt.Errorf("sign %v: %w", c.Usage, err)
	}
	value := make([]byte, sigSlotSize-8)
	slices.Reverse(sig)
	copy(value, sig)
	c.setSignature(slot, signature{signer, AlgoRSASHA256, value})
	return nil
}

func (c *Certificate) setSignature(slot int, s signature) {
	off := offSig1 + slot*sigSlotSize
	binary.LittleEndian.PutUint32(c.raw[off:], uint32(s.usage))
	binary.LittleEndian.PutUint32(c.raw[off+4:], uint32(s.algo))
	copy(c.raw[off+8:off+sigSlotSize], s.value)
	c.sigs[slot] = s
}

// checkECDSA verifies the signature that the signer's usage names.
func (c *Certificate) checkECDSA(signer Usage, key *ecdsa.PublicKey) error {
	s, err := c.signatureBy(signer)
	if err != nil {
		return err
	}
	if s.algo != AlgoECDSASHA256 && s.algo != AlgoECDSASHA384 {
		return fmt.Errorf("%w: %v: signature by %v has algorithm %#x, not ECDSA", ErrCertificate, c.Usage, signer,
			uint32(s.algo))
	}
	if !octets.AllZero(s.value[2*coordSize:]) {
		return fmt.Errorf("%w: %v: bytes after the signature by %v are set", ErrCertificate, c.Usage, signer)
	}
	r, v := octets.Number(s.value[:coordSize]), octets.Number(s.value[coordSize:2*coordSize])
	if !ecdsa.Verify(key, hashOf(s.algo.hash(), c.raw[:offSig1]), r, v) {
		return fmt.Errorf("%w: %v: signature by %v does not verify", ErrCertificate, c.Usage, signer)
	}
	return nil
}

// checkRSA verifies an RSA-PSS signature, as AMD's ASK makes over a CEK.
func (c *Certificate) checkRSA(signer Usage, key *rsa.PublicKey) error {
	s, err := c.signatureBy(signer)
	if err != nil {
		return err
	}
	if s.algo != AlgoRSASHA256 && s.algo != AlgoRSASHA384 {
		return fmt.Errorf("%w: %v: signature by %v has algorithm %#x, not RSA", ErrCertificate, c.Usage, signer,
			uint32(s.algo))
	}
	if err := verifyPSS(key, s.algo.hash(), c.raw[:offSig1], s.value); err != nil {
		return fmt.Errorf("%w: %v: signature by %v does not verify", ErrCertificate, c.Usage, signer)
	}
	return nil
}

func (c *Certificate) signatureBy(signer Usage) (signature, error) {
	for _, s := range c.sigs {
		if s.usage == signer {
			return s, nil
		}
	}
	return signature{}, fmt.Errorf("%w: %v: carries no signature by %v", ErrCertificate, c.Usage, signer)
}

func (c *Certificate) signatures() int {
	n := 0
	for _, s := range c.sigs {
		if s.usage != UsageInvalid {
			n++
		}
	}
	return n
}

func hashOf(h crypto.Hash, b []byte) []byte {
	d := h.New()
	d.Write(b)
	return d.Sum(nil)
}

// putLE writes a number little-endian over the whole of b.
func putLE(b []byte, n *big.Int) {
	n.FillBytes(b)
	slices.Reverse(b)
}
