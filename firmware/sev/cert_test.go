package sev

import (
	"bytes"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
)

// edited is a certificate with some bytes changed.
func edited(c *Certificate, edit func(b []byte)) []byte {
	b := c.Bytes()
	edit(b)
	return b
}

// TestCertificateRefused: bytes without a meaning, and keys that are none.
func TestCertificateRefused(t *testing.T) {
	c := newChain(t)
	put := func(off int, v uint32) func([]byte) {
		return func(b []byte) { binary.LittleEndian.PutUint32(b[off:], v) }
	}
	for name, x := range map[string]struct {
		edit func([]byte)
		say  string
	}{
		"version":            {put(offVersion, 2), "version 2, must be 1"},
		"algorithm":          {put(offAlgo, uint32(AlgoRSASHA256)), "key algorithm 0x1"},
		"curve":              {put(offPubkey, 1), "curve 1 is not P-384"},
		"coordinate":         {func(b []byte) { b[offPubkey+4+p384Size] = 1 }, "a coordinate has more"},
		"second coordinate":  {func(b []byte) { b[offPubkey+4+coordSize+p384Size] = 1 }, "a coordinate has more"},
		"point":              {func(b []byte) { b[offPubkey+4] ^= 1 }, "key: "},
		"unused, algorithm":  {put(offSig2+4, 2), "signature 2 is unused but not empty"},
		"unused, first byte": {func(b []byte) { b[offSig2+8] = 1 }, "signature 2 is unused but not empty"},
		"unused, last byte":  {func(b []byte) { b[CertificateSize-1] = 1 }, "signature 2 is unused but not empty"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseCertificate(edited(c.pdh, x.edit))
			if !errors.Is(err, ErrCertificate) || !strings.Contains(err.Error(), x.say) {
				t.Errorf("error %v, want ErrCertificate with %q", err, x.say)
			}
		})
	}
}

// TestCertificateLeftovers: bytes without a meaning are kept where a signature covers them.
func TestCertificateLeftovers(t *testing.T) {
	c := newChain(t)
	for name, at := range map[string]int{
		"reserved, first": offUsage - 2, "reserved, last": offUsage - 1,
		"behind the key": offPubkey + 4 + 2*coordSize, "end of the key": offSig1 - 1,
	} {
		b := edited(c.pdh, func(b []byte) { b[at] = 1 })
		cert, err := ParseCertificate(b)
		if err != nil || !bytes.Equal(cert.Bytes(), b) || !cert.Key.Equal(c.pdh.Key) {
			t.Errorf("%s: %v, want the certificate as it is", name, err)
			continue
		}
		if err := cert.checkECDSA(UsagePEK, &c.pekKey.PublicKey); err == nil {
			t.Errorf("%s: set after it was signed, and the signature verifies", name)
		}
	}
}

func TestCertificateFields(t *testing.T) {
	key := newKey(t, elliptic.P384())
	c, err := NewCertificate(&key.PublicKey, UsagePDH, AlgoECDHSHA384, Build{Major: 1, Minor: 55})
	if err != nil {
		t.Fatal(err)
	}
	b := c.Bytes()
	if b[offAPIMajor] != 1 || b[offAPIMinor] != 55 || c.Usage != UsagePDH || c.Algo != AlgoECDHSHA384 {
		t.Errorf("API %d.%d, %v, %#x, want 1.55, PDH, 0x103", b[offAPIMajor], b[offAPIMinor], c.Usage, c.Algo)
	}
	if !c.Key.Equal(&key.PublicKey) || c.signatures() != 0 {
		t.Errorf("key differs, or %d signatures, want 0", c.signatures())
	}
	b[0] ^= 1
	if bytes.Equal(b, c.Bytes()) {
		t.Error("Bytes gives the certificate's own bytes away, want a copy")
	}
	if _, err := NewCertificate(&newKey(t, elliptic.P256()).PublicKey, UsagePDH, AlgoECDHSHA256, Build{}); err == nil {
		t.Error("a key on P-256 makes a certificate, want an error")
	}
	for u, want := range map[Usage]string{UsageARK: "ARK", UsageCEK: "CEK", 0x77: "usage 0x77"} {
		if got := u.String(); got != want {
			t.Errorf("usage %#x prints as %q, want %q", uint32(u), got, want)
		}
	}
}

// TestChainRefused: every link counts.
func TestChainRefused(t *testing.T) {
	stranger := newKey(t, elliptic.P384())
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, x := range map[string]struct {
		edit func(c *testChain) error
		say  string
	}{
		"PDH by another PEK": {func(c *testChain) error {
			return c.pdh.SignECDSA(rand.Reader, 0, UsagePEK, stranger)
		}, "PDH: signature by PEK does not verify"},
		"PEK by another OCA": {func(c *testChain) error {
			return c.pek.SignECDSA(rand.Reader, 0, UsageOCA, stranger)
		}, "PEK: signature by OCA does not verify"},
		"PEK by another CEK": {func(c *testChain) error {
			return c.pek.SignECDSA(rand.Reader, 1, UsageCEK, stranger)
		}, "PEK: signature by CEK does not verify"},
		"OCA by another": {func(c *testChain) error {
			return c.oca.SignECDSA(rand.Reader, 0, UsageOCA, stranger)
		}, "OCA: signature by OCA does not verify"},
		"CEK by another ASK": {func(c *testChain) error {
			return c.cek.SignRSA(rand.Reader, 0, UsageASK, other)
		}, ErrUntrusted.Error()},
		"PDH signed twice": {func(c *testChain) error {
			return c.pdh.SignECDSA(rand.Reader, 1, UsageOCA, c.ocaKey)
		}, "PDH: 2 signatures, must be 1"},
		"OCA signed twice": {func(c *testChain) error {
			return c.oca.SignECDSA(rand.Reader, 1, UsagePEK, c.pekKey)
		}, "OCA: 2 signatures, must be 1"},
		"CEK signed twice": {func(c *testChain) error {
			return c.cek.SignECDSA(rand.Reader, 1, UsageOCA, c.ocaKey)
		}, "CEK: 2 signatures, must be 1"},
		"PEK not by CEK": {func(c *testChain) error {
			return c.pek.SignECDSA(rand.Reader, 1, UsagePDH, stranger)
		}, "PEK: carries no signature by CEK"},
		"CEK not by ASK": {func(c *testChain) error {
			return c.cek.SignECDSA(rand.Reader, 0, UsageOCA, c.ocaKey)
		}, "CEK: carries no signature by ASK"},
		"CEK by ECDSA": {func(c *testChain) error {
			return c.cek.SignECDSA(rand.Reader, 0, UsageASK, c.cekKey)
		}, ErrUntrusted.Error()},
		"PDH by RSA": {func(c *testChain) error {
			return c.pdh.SignRSA(rand.Reader, 0, UsagePEK, c.ask)
		}, "signature by PEK has algorithm 0x1, not ECDSA"},
		"behind a signature": {func(c *testChain) error {
			c.pdh.raw[offSig1+8+2*coordSize] = 1
			return nil
		}, "bytes after the signature by PEK are set"},
		"end of a signature": {func(c *testChain) error {
			c.pdh.raw[offSig2-1] = 1
			return nil
		}, "bytes after the signature by PEK are set"},
		"behind the RSA signature": {func(c *testChain) error {
			c.cek.raw[offSig1+8+256] = 1
			return nil
		}, ErrUntrusted.Error()},
		"OCA for the PEK": {func(c *testChain) error { c.pek = c.oca; return nil }, "found OCA where PEK belongs"},
		"signature with SHA-384": {func(c *testChain) error {
			c.pdh.raw[offSig1+5] = 1 // the digest is another then
			return nil
		}, "PDH: signature by PEK does not verify"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newChain(t)
			if err := x.edit(c); err != nil {
				t.Fatal(err)
			}
			root, err := c.verify()
			if err == nil || !strings.Contains(err.Error(), x.say) || root.Product != "" {
				t.Errorf("root %q, %v, want an error with %q", root.Product, err, x.say)
			}
		})
	}
	c := newChain(t)
	b := c.bytes()
	for _, n := range []int{0, 3*CertificateSize - 1, 3*CertificateSize + 1} {
		chain := slices.Grow(slices.Clone(b[CertificateSize:]), 1)[:n]
		if _, err := ParseChain(b[:CertificateSize], chain); !errors.Is(err, ErrCertificate) {
			t.Errorf("chain of %d bytes: %v, want ErrCertificate", n, err)
		}
	}
	if _, err := ParseChain(b[:CertificateSize-1], b[CertificateSize:]); !errors.Is(err, ErrCertificate) {
		t.Errorf("PDH of %d bytes: %v, want ErrCertificate", CertificateSize-1, err)
	}
}

func TestCACertificateRefused(t *testing.T) {
	c := newChain(t)
	good := c.root.ASK.Bytes()
	if back, rest, err := ParseCACertificate(append(slices.Clone(good), 7)); err != nil ||
		!bytes.Equal(back.Bytes(), good) || !bytes.Equal(rest, []byte{7}) {
		t.Fatalf("%v, %x behind it, %v, want the certificate and 07", back, rest, err)
	}
	put := func(off int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint32(b[off:], v); return b }
	}
	set := func(off int) func([]byte) []byte {
		return func(b []byte) []byte { b[off] ^= 1; return b }
	}
	for name, x := range map[string]struct {
		edit func([]byte) []byte
		say  string
	}{
		"too short":       {func(b []byte) []byte { return b[:caHeaderSize-1] }, "63 bytes are too few"},
		"header alone":    {func(b []byte) []byte { return b[:caHeaderSize] }, "cut off at 64 bytes"},
		"cut off":         {func(b []byte) []byte { return b[:len(b)-1] }, "cut off at 831 bytes"},
		"version":         {put(0, 2), "version 2, must be 1"},
		"usage":           {put(caOffUsage, uint32(UsagePEK)), "PEK is neither ARK nor ASK"},
		"exponent's size": {put(caOffExpBits, 4096), "exponent of 4096"},
		"modulus' size":   {put(caOffModBits, 1024), "key of 1024 bits"},
		"both sizes": {func(b []byte) []byte {
			return put(caOffModBits, 1024)(put(caOffExpBits, 1024)(b))
		}, "key of 1024 bits"},
		"exponent":      {set(caHeaderSize), "public exponent is not 65537"},
		"long exponent": {set(caHeaderSize + 200), "public exponent is not 65537"},
		"short modulus": {func(b []byte) []byte { b[caHeaderSize+2*256-1] = 0; return b }, "modulus has"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := ParseCACertificate(x.edit(slices.Clone(good)))
			if !errors.Is(err, ErrCertificate) || !strings.Contains(err.Error(), x.say) {
				t.Errorf("error %v, want ErrCertificate with %q", err, x.say)
			}
		})
	}
}

func TestRootRefused(t *testing.T) {
	c := newChain(t)
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewCACertificate(rand.Reader, &stranger.PublicKey, UsageARK, [16]byte{1}, [16]byte{1}, stranger)
	if err != nil {
		t.Fatal(err)
	}
	ask, ark := c.root.ASK.Bytes(), c.root.ARK.Bytes()
	good := slices.Concat(ask, ark)
	r, err := ParseRoot("x", good)
	if err != nil || r.Product != "x" || len(r.Fingerprint()) != 64 ||
		r.Fingerprint() == (Root{ARK: other}).Fingerprint() {
		t.Fatalf("%+v, %v", r, err)
	}
	flipped := slices.Clone(good)
	flipped[len(ask)-1] ^= 1
	self := slices.Clone(good)
	self[len(self)-1] ^= 1
	for name, b := range map[string][]byte{
		"nothing":              nil,
		"an ASK alone":         ask,
		"in the other order":   slices.Concat(ark, ask),
		"two ARKs":             slices.Concat(ark, ark),
		"two ASKs":             slices.Concat(ask, ask),
		"bytes behind":         append(slices.Clone(good), 0),
		"another ARK":          slices.Concat(ask, other.Bytes()),
		"ASK's signature":      flipped,
		"ARK's own signature":  self,
		"an ARK that is short": good[:len(good)-1],
	} {
		if _, err := ParseRoot("x", b); !errors.Is(err, ErrCertificate) {
			t.Errorf("%s: %v, want ErrCertificate", name, err)
		}
	}
	// The right key under another name.
	key := stranger
	ark1, err := NewCACertificate(rand.Reader, &key.PublicKey, UsageARK, [16]byte{1}, [16]byte{1}, key)
	if err != nil {
		t.Fatal(err)
	}
	ask2, err := NewCACertificate(rand.Reader, &key.PublicKey, UsageASK, [16]byte{2}, [16]byte{9}, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := (Root{ARK: ark1, ASK: ask2}).Check(); !errors.Is(err, ErrCertificate) {
		t.Errorf("an ASK that names another signer: %v, want ErrCertificate", err)
	}
	if ark1.KeyID != [16]byte{1} || ask2.Certifier != [16]byte{9} {
		t.Errorf("key id %x, certifier %x, want 01… and 09…", ark1.KeyID, ask2.Certifier)
	}
}

// TestCompiledRoots: the products in their order, each under its published hash.
func TestCompiledRoots(t *testing.T) {
	roots, err := AMDRoots()
	if err != nil {
		t.Fatal(err)
	}
	var products []string
	for _, r := range roots {
		products = append(products, r.Product)
		if err := r.Check(); err != nil {
			t.Errorf("%s: %v", r.Product, err)
		}
	}
	if want := []string{"naples", "rome", "milan", "genoa", "turin"}; !slices.Equal(products, want) {
		t.Errorf("roots %v, want %v", products, want)
	}
	good := rootFields{
		SHA256: strings.Repeat("0", 64), Usage: "0x13", Exponent: 65537, Bits: 2048,
		Modulus: strings.Repeat("ab", 256), Signature: strings.Repeat("cd", 256),
		KeyID: strings.Repeat("1", 32), CertifyingID: strings.Repeat("2", 32),
	}
	for name, edit := range map[string]func(*rootFields){
		"hash":      func(*rootFields) {},
		"bits":      func(f *rootFields) { f.Bits = 1024 },
		"usage":     func(f *rootFields) { f.Usage = "x" },
		"key id":    func(f *rootFields) { f.KeyID = "x" },
		"modulus":   func(f *rootFields) { f.Modulus = "ab" },
		"signature": func(f *rootFields) { f.Signature = "x" + f.Signature[1:] },
	} {
		f := good
		edit(&f)
		if _, err := f.certificate(); err == nil {
			t.Errorf("%s: a certificate, want an error", name)
		}
	}
}
