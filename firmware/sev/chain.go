package sev

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"sync"
)

// ErrUntrusted means that a chain is whole but ends in no root that was given.
var ErrUntrusted = errors.New("certificate chain ends in no trusted root")

// ErrUnsignedCEK means that a chain is whole, but its CEK carries no signature. Platforms
// export it so; the signed one comes from AMD (see [CEKAddress]).
var ErrUnsignedCEK = fmt.Errorf("%w: CEK: it carries no signature, as platforms export it", ErrCertificate)

// CEKAddress is where AMD publishes the signed CEK of the chip with an ID of 64 bytes (SEV
// API, chapter 5.16, GET_ID). A file from there has the 2084 bytes of a certificate.
func CEKAddress(chipID []byte) string {
	return "https://kdsintf.amd.com/cek/id/" + hex.EncodeToString(chipID)
}

// Chain is what a platform shows of itself: the Diffie-Hellman key that an
// owner's session is made for, and the certificates up to the chip.
type Chain struct {
	PDH, PEK, OCA, CEK *Certificate
}

// ParseChain reads a PDH certificate and the chain as QEMU's
// query-sev-capabilities gives it: PEK, OCA, CEK, 6252 bytes.
func ParseChain(pdh, chain []byte) (*Chain, error) {
	if len(chain) != 3*CertificateSize {
		return nil, fmt.Errorf("%w: chain of %d bytes, must be %d (PEK, OCA, CEK)", ErrCertificate, len(chain),
			3*CertificateSize)
	}
	c := &Chain{}
	for _, part := range []struct {
		dst   **Certificate
		raw   []byte
		usage Usage
	}{
		{&c.PDH, pdh, UsagePDH},
		{&c.PEK, chain[:CertificateSize], UsagePEK},
		{&c.OCA, chain[CertificateSize : 2*CertificateSize], UsageOCA},
		{&c.CEK, chain[2*CertificateSize:], UsageCEK},
	} {
		cert, err := ParseCertificate(part.raw)
		if err != nil {
			return nil, fmt.Errorf("%v: %w", part.usage, err)
		}
		if cert.Usage != part.usage {
			return nil, fmt.Errorf("%w: found %v where %v belongs", ErrCertificate, cert.Usage, part.usage)
		}
		*part.dst = cert
	}
	return c, nil
}

// Root is a product line's pair of AMD certificates.
type Root struct {
	Product string // "naples" to "turin", or the name of a test root
	ARK     *CACertificate
	ASK     *CACertificate
}

// Check verifies that the ARK signs itself and the ASK.
func (r Root) Check() error {
	if r.ARK.Usage != UsageARK || r.ASK.Usage != UsageASK {
		return fmt.Errorf("%w: root %s: needs an ASK and an ARK", ErrCertificate, r.Product)
	}
	if err := r.ARK.check(r.ARK); err != nil {
		return err
	}
	return r.ASK.check(r.ARK)
}

// Fingerprint is the SHA-256 of the ARK as published, in hex.
func (r Root) Fingerprint() string {
	sum := sha256.Sum256(r.ARK.Bytes())
	return hex.EncodeToString(sum[:])
}

// ParseRoot reads an ASK followed by an ARK, the order in which AMD publishes them.
func ParseRoot(product string, b []byte) (Root, error) {
	ask, rest, err := ParseCACertificate(b)
	if err != nil {
		return Root{}, err
	}
	ark, rest, err := ParseCACertificate(rest)
	if err != nil {
		return Root{}, err
	}
	if len(rest) != 0 {
		return Root{}, fmt.Errorf("%w: root %s: %d bytes after the ARK", ErrCertificate, product, len(rest))
	}
	r := Root{Product: product, ASK: ask, ARK: ark}
	return r, r.Check()
}

// WithCEK returns the chain with a signed CEK, 2084 bytes, in place of the exported one. It
// must be for the same key; [Chain.Verify] checks its signature.
func (c *Chain) WithCEK(b []byte) (*Chain, error) {
	cek, err := ParseCertificate(b)
	switch {
	case err != nil:
		return nil, fmt.Errorf("CEK: %w", err)
	case cek.Usage != UsageCEK:
		return nil, fmt.Errorf("%w: found %v where %v belongs", ErrCertificate, cek.Usage, UsageCEK)
	case cek.Algo != c.CEK.Algo || !cek.Key.Equal(c.CEK.Key):
		return nil, fmt.Errorf("%w: CEK: is another chip's: its key differs from the platform's", ErrCertificate)
	case cek.signatures() == 0:
		return nil, fmt.Errorf("%w, and as this file has it too", ErrUnsignedCEK)
	}
	with := *c
	with.CEK = cek
	return &with, nil
}

// Verify checks the whole chain: the PDH is signed by the PEK, the PEK by OCA
// and CEK, the OCA by itself, the CEK by the ASK of one of the roots. It
// returns that root. The error names the link that failed; it is ErrUnsignedCEK
// when only the signed CEK is missing, and ErrUntrusted when only the root is. Roots
// come from AMDRoots or ParseRoot, which have checked them.
func (c *Chain) Verify(roots []Root) (Root, error) {
	for _, link := range []struct {
		cert   *Certificate
		signer *Certificate
	}{{c.PDH, c.PEK}, {c.PEK, c.OCA}, {c.PEK, c.CEK}, {c.OCA, c.OCA}} {
		if err := link.cert.checkECDSA(link.signer.Usage, link.signer.Key); err != nil {
			return Root{}, err
		}
	}
	for _, want := range []struct {
		cert *Certificate
		n    int
	}{{c.PDH, 1}, {c.PEK, 2}, {c.OCA, 1}} {
		if got := want.cert.signatures(); got != want.n {
			return Root{}, fmt.Errorf("%w: %v: %d signatures, must be %d", ErrCertificate, want.cert.Usage, got,
				want.n)
		}
	}
	switch n := c.CEK.signatures(); {
	case n == 0:
		return Root{}, ErrUnsignedCEK
	case n > 1:
		return Root{}, fmt.Errorf("%w: CEK: %d signatures, must be 1", ErrCertificate, n)
	}
	if _, err := c.CEK.signatureBy(UsageASK); err != nil {
		return Root{}, err
	}
	for _, r := range roots {
		if c.CEK.checkRSA(UsageASK, r.ASK.Key) == nil {
			return r, nil
		}
	}
	return Root{}, ErrUntrusted
}

// Bytes returns PEK, OCA and CEK as ParseChain takes them.
func (c *Chain) Bytes() []byte {
	return slices.Concat(c.PEK.raw[:], c.OCA.raw[:], c.CEK.raw[:])
}

//go:embed roots.json
var rootsJSON []byte

// Products returns the names of AMD's product lines, oldest first. Bergamo and Siena are
// of the line genoa.
func Products() []string { return []string{"naples", "rome", "milan", "genoa", "turin"} }

// AMDRoots returns AMD's published roots, oldest product first. They are
// compiled in, so that trusting a platform needs no network.
func AMDRoots() ([]Root, error) {
	roots, err := compiledRoots()
	return slices.Clone(roots), err
}

// compiledRoots parses them once.
var compiledRoots = sync.OnceValues(func() ([]Root, error) {
	var file struct {
		Certificates map[string]rootFields
	}
	if err := json.Unmarshal(rootsJSON, &file); err != nil {
		return nil, fmt.Errorf("compiled-in roots: %w", err)
	}
	var roots []Root
	for _, product := range Products() {
		ask, err := file.Certificates[product+"/ask"].certificate()
		if err != nil {
			return nil, fmt.Errorf("compiled-in roots: %s: %w", product, err)
		}
		ark, err := file.Certificates[product+"/ark"].certificate()
		if err != nil {
			return nil, fmt.Errorf("compiled-in roots: %s: %w", product, err)
		}
		root, err := ParseRoot(product, slices.Concat(ask, ark))
		if err != nil {
			return nil, fmt.Errorf("compiled-in roots: %s: %w", product, err)
		}
		roots = append(roots, root)
	}
	return roots, nil
})

// rootFields is one certificate of roots.json.
type rootFields struct {
	SHA256       string `json:"sha256"`
	KeyID        string `json:"key_id"`
	CertifyingID string `json:"certifying_id"`
	Usage        string `json:"usage"`
	Exponent     int64  `json:"public_exponent"`
	Bits         int    `json:"modulus_bits"`
	Modulus      string `json:"modulus_le_hex"`
	Signature    string `json:"signature_le_hex"`
}

// certificate lays the fields out as AMD publishes them and checks the file's hash.
func (f rootFields) certificate() ([]byte, error) {
	n := f.Bits / 8
	if n != 256 && n != 512 {
		return nil, fmt.Errorf("%w: key of %d bits", ErrCertificate, f.Bits)
	}
	b := make([]byte, caHeaderSize+n)
	b[0] = 1
	var usage uint8
	if _, err := fmt.Sscanf(f.Usage, "0x%x", &usage); err != nil {
		return nil, fmt.Errorf("usage: %w", err)
	}
	b[caOffUsage] = usage
	for _, bits := range []int{caOffExpBits, caOffModBits} {
		b[bits], b[bits+1] = byte(f.Bits), byte(f.Bits>>8)
	}
	putLE(b[caHeaderSize:], big.NewInt(f.Exponent))
	for _, id := range []struct {
		off int
		hex string
	}{{caOffKeyID, f.KeyID}, {caOffCertifier, f.CertifyingID}} {
		if _, err := hex.Decode(b[id.off:id.off+16], []byte(id.hex)); err != nil {
			return nil, fmt.Errorf("key id: %w", err)
		}
	}
	for _, part := range []string{f.Modulus, f.Signature} {
		raw, err := hex.DecodeString(part)
		if err != nil || len(raw) != n {
			return nil, fmt.Errorf("%w: modulus or signature is not %d bytes of hex", ErrCertificate, n)
		}
		b = append(b, raw...)
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != f.SHA256 {
		return nil, fmt.Errorf("%w: is not the file that AMD publishes", ErrCertificate)
	}
	return b, nil
}

// Endorses is an error unless a certificate is that of a chip, and signed by the root's ASK.
func (r Root) Endorses(c *Certificate) error {
	if c.Usage != UsageCEK {
		return fmt.Errorf("%w: found %v where %v belongs", ErrCertificate, c.Usage, UsageCEK)
	}
	if c.signatures() == 0 {
		return ErrUnsignedCEK
	}
	return c.checkRSA(UsageASK, r.ASK.Key)
}
