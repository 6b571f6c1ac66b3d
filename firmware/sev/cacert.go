package sev

import (
	"crypto"
	"crypto/rsa"
	"encoding/binary"
	"fmt"
	"io"
	"math/big"
	"slices"

	"github.com/vmlatch/vmlatch/firmware/internal/octets"
)

// Layout of AMD's CA certificates (SEV API, appendix B.1, table 100). The
// exponent, modulus and signature follow, each as long as the modulus, little-endian.
const (
	caHeaderSize   = 64
	caOffKeyID     = 4
	caOffCertifier = 20
	caOffUsage     = 36
	caOffExpBits   = 56
	caOffModBits   = 60
)

var pssOptions = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}

// CACertificate is an AMD certificate: the ARK or an ASK, with an RSA
// key of 2048 bits (Naples) or 4096 bits.
type CACertificate struct {
	Usage     Usage
	KeyID     [16]byte
	Certifier [16]byte // key id of the signer
	Key       *rsa.PublicKey
	signed    []byte
	sig       []byte
}

// ParseCACertificate reads one certificate and returns the bytes behind it.
func ParseCACertificate(b []byte) (*CACertificate, []byte, error) {
	if len(b) < caHeaderSize {
		return nil, nil, fmt.Errorf("%w: AMD CA: %d bytes are too few", ErrCertificate, len(b))
	}
	le := binary.LittleEndian
	c := &CACertificate{Usage: Usage(le.Uint32(b[caOffUsage:]))}
	copy(c.KeyID[:], b[caOffKeyID:])
	copy(c.Certifier[:], b[caOffCertifier:])
	expBits, modBits := le.Uint32(b[caOffExpBits:]), le.Uint32(b[caOffModBits:])
	switch {
	case le.Uint32(b) != 1:
		return nil, nil, fmt.Errorf("%w: AMD CA: version %d, must be 1", ErrCertificate, le.Uint32(b))
	case c.Usage != UsageARK && c.Usage != UsageASK:
		return nil, nil, fmt.Errorf("%w: AMD CA: %v is neither ARK nor ASK", ErrCertificate, c.Usage)
	case modBits != 2048 && modBits != 4096 || expBits != modBits:
		return nil, nil, fmt.Errorf("%w: %v: key of %d bits, exponent of %d, must be 2048 or 4096", ErrCertificate,
			c.Usage, modBits, expBits)
	}
	n := int(modBits / 8)
	if len(b) < caHeaderSize+3*n {
		return nil, nil, fmt.Errorf("%w: %v: cut off at %d bytes", ErrCertificate, c.Usage, len(b))
	}
	exp := octets.Number(b[caHeaderSize : caHeaderSize+n])
	if !exp.IsInt64() || exp.Int64() != 65537 {
		return nil, nil, fmt.Errorf("%w: %v: public exponent is not 65537", ErrCertificate, c.Usage)
	}
	c.Key = &rsa.PublicKey{N: octets.Number(b[caHeaderSize+n : caHeaderSize+2*n]), E: 65537}
	if c.Key.N.BitLen() != int(modBits) {
		return nil, nil, fmt.Errorf("%w: %v: modulus has %d bits, not %d", ErrCertificate, c.Usage, c.Key.N.BitLen(),
			modBits)
	}
	c.signed = slices.Clone(b[:caHeaderSize+2*n])
	c.sig = slices.Clone(b[caHeaderSize+2*n : caHeaderSize+3*n])
	return c, b[caHeaderSize+3*n:], nil
}

// NewCACertificate makes a certificate in AMD's format, signed by signer with
// RSA-PSS. It is for emulated platforms: only AMD can sign a real one.
func NewCACertificate(
	rand io.Reader,
	key *rsa.PublicKey,
	usage Usage,
	id, certifier [16]byte,
	signer *rsa.PrivateKey,
) (*CACertificate, error) {
	n := key.Size()
	b := make([]byte, caHeaderSize+2*n)
	le := binary.LittleEndian
	le.PutUint32(b, 1)
	copy(b[caOffKeyID:], id[:])
	copy(b[caOffCertifier:], certifier[:])
	le.PutUint32(b[caOffUsage:], uint32(usage))
	le.PutUint32(b[caOffExpBits:], uint32(8*n))
	le.PutUint32(b[caOffModBits:], uint32(8*n))
	putLE(b[caHeaderSize:caHeaderSize+n], big.NewInt(int64(key.E)))
	putLE(b[caHeaderSize+n:], key.N)
	h := caHash(signer.Size())
	sig, err := rsa.SignPSS(rand, signer, h, hashOf(h, b), pssOptions)
	if err != nil {
		return nil, fmt.Errorf("sign %v: %w", usage, err)
	}
	slices.Reverse(sig)
	c, _, err := ParseCACertificate(append(b, sig...))
	return c, err
}

// Bytes returns the certificate as AMD publishes it: 832 or 1600 bytes.
func (c *CACertificate) Bytes() []byte { return slices.Concat(c.signed, c.sig) }

// caHash is the hash that goes with an RSA key of n bytes.
func caHash(n int) crypto.Hash {
	if n == 512 {
		return crypto.SHA384
	}
	return crypto.SHA256
}

func (c *CACertificate) check(signer *CACertificate) error {
	if c.Certifier != signer.KeyID {
		return fmt.Errorf("%w: %v: names another signer than this %v", ErrCertificate, c.Usage, signer.Usage)
	}
	if verifyPSS(signer.Key, caHash(signer.Key.Size()), c.signed, c.sig) != nil {
		return fmt.Errorf("%w: %v: signature by %v does not verify", ErrCertificate, c.Usage, signer.Usage)
	}
	return nil
}

// verifyPSS checks a little-endian signature; bytes behind it must be zero.
func verifyPSS(key *rsa.PublicKey, h crypto.Hash, msg, sigLE []byte) error {
	n := key.Size()
	if len(sigLE) < n || !octets.AllZero(sigLE[n:]) {
		return rsa.ErrVerification
	}
	sig := slices.Clone(sigLE[:n])
	slices.Reverse(sig)
	return rsa.VerifyPSS(key, h, hashOf(h, msg), sig, pssOptions)
}
