package sev

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestAMDRoots(t *testing.T) {
	roots, err := AMDRoots()
	if err != nil {
		t.Fatal(err)
	}
	if len(roots) != 5 {
		t.Fatalf("%d roots, want 5", len(roots))
	}
}

// testChain is a platform's chain under a root of its own.
type testChain struct {
	root                   Root
	pdh, pek, oca, cek     *Certificate
	pekKey, ocaKey, cekKey *ecdsa.PrivateKey
	ask                    *rsa.PrivateKey
}

// rsaKeys are the keys of the test chains' ARK and ASK: making them takes long.
var rsaKeys = sync.OnceValues(func() (ark, ask *rsa.PrivateKey) {
	key := func() *rsa.PrivateKey {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		return k
	}
	return key(), key()
})

func newChain(t testing.TB) *testChain {
	t.Helper()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	p384 := elliptic.P384()
	ark, ask := rsaKeys()
	c := &testChain{ask: ask, pekKey: newKey(t, p384), ocaKey: newKey(t, p384), cekKey: newKey(t, p384)}
	var err error
	c.root.Product = "test"
	c.root.ARK, err = NewCACertificate(rand.Reader, &ark.PublicKey, UsageARK, [16]byte{1}, [16]byte{1}, ark)
	ok(err)
	c.root.ASK, err = NewCACertificate(rand.Reader, &c.ask.PublicKey, UsageASK, [16]byte{2}, [16]byte{1}, ark)
	ok(err)
	certificate := func(key *ecdsa.PublicKey, usage Usage, algo Algo) *Certificate {
		cert, err := NewCertificate(key, usage, algo, Build{Major: 1, Minor: 55})
		ok(err)
		return cert
	}
	c.pdh = certificate(&newKey(t, p384).PublicKey, UsagePDH, AlgoECDHSHA256)
	c.pek = certificate(&c.pekKey.PublicKey, UsagePEK, AlgoECDSASHA256)
	c.oca = certificate(&c.ocaKey.PublicKey, UsageOCA, AlgoECDSASHA256)
	c.cek = certificate(&c.cekKey.PublicKey, UsageCEK, AlgoECDSASHA256)
	ok(c.pdh.SignECDSA(rand.Reader, 0, UsagePEK, c.pekKey))
	ok(c.pek.SignECDSA(rand.Reader, 0, UsageOCA, c.ocaKey))
	ok(c.pek.SignECDSA(rand.Reader, 1, UsageCEK, c.cekKey))
	ok(c.oca.SignECDSA(rand.Reader, 0, UsageOCA, c.ocaKey))
	ok(c.cek.SignRSA(rand.Reader, 0, UsageASK, c.ask))
	return c
}

func (c *testChain) bytes() []byte {
	return slices.Concat(c.pdh.Bytes(), c.pek.Bytes(), c.oca.Bytes(), c.cek.Bytes())
}

func (c *testChain) verify() (Root, error) {
	b := c.bytes()
	chain, err := ParseChain(b[:CertificateSize], b[CertificateSize:])
	if err != nil {
		return Root{}, err
	}
	return chain.Verify([]Root{c.root})
}

func TestChainVerifies(t *testing.T) {
	c := newChain(t)
	if err := c.root.Check(); err != nil {
		t.Fatal(err)
	}
	root, err := c.verify()
	if err != nil || root.Product != "test" {
		t.Errorf("root %q, %v, want test", root.Product, err)
	}
	made := &Chain{PDH: c.pdh, PEK: c.pek, OCA: c.oca, CEK: c.cek}
	if _, err := made.Verify([]Root{c.root}); err != nil {
		t.Errorf("as it was made, not read: %v, want nil", err)
	}
	roots, err := AMDRoots()
	if err != nil {
		t.Fatal(err)
	}
	b := c.bytes()
	chain, err := ParseChain(b[:CertificateSize], b[CertificateSize:])
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(chain.Bytes(), b[CertificateSize:]) {
		t.Error("the chain does not print as it was read")
	}
	if _, err := chain.Verify(roots); !errors.Is(err, ErrUntrusted) {
		t.Errorf("under AMD's roots: %v, want ErrUntrusted", err)
	}
}

// TestRealShape: a chain as a real host exports it, with leftovers behind its OCA's key and
// an unsigned CEK, verifies once the signed CEK stands in it, and not before.
func TestRealShape(t *testing.T) {
	c := newChain(t)
	c.oca.raw[offAPIMajor], c.oca.raw[offAPIMinor] = 0, 0
	if _, err := rand.Read(c.oca.raw[offSig1-329 : offSig1]); err != nil {
		t.Fatal(err)
	}
	if err := c.oca.SignECDSA(rand.Reader, 0, UsageOCA, c.ocaKey); err != nil {
		t.Fatal(err)
	}
	signed := c.cek
	c.cek = signed.Unsigned()
	if signed.signatures() != 1 || c.cek.signatures() != 0 || !bytes.Equal(signed.raw[:offSig1], c.cek.raw[:offSig1]) {
		t.Fatal("the unsigned copy differs in more than its signature, or changed the original")
	}
	b := c.bytes()
	chain, err := ParseChain(b[:CertificateSize], b[CertificateSize:])
	if err != nil {
		t.Fatal(err)
	}
	if major, minor := chain.OCA.API(); major != 0 || minor != 0 {
		t.Errorf("API of the OCA %d.%d, want 0.0", major, minor)
	}
	roots := []Root{c.root}
	if _, err := chain.Verify(roots); !errors.Is(err, ErrUnsignedCEK) || !errors.Is(err, ErrCertificate) {
		t.Errorf("as exported: %v, want ErrUnsignedCEK", err)
	}
	with, err := chain.WithCEK(signed.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if root, err := with.Verify(roots); err != nil || root.Product != "test" {
		t.Errorf("with the signed CEK: %q, %v, want test", root.Product, err)
	}
	if chain.CEK.signatures() != 0 {
		t.Error("the chain itself was changed")
	}
	other := newChain(t).cek
	byStranger := edited(signed, func(b []byte) { b[offSig1+8] ^= 1 })
	for name, x := range map[string]struct {
		cek  []byte
		want string
	}{
		"another chip's":   {other.Bytes(), "its key differs"},
		"unsigned as well": {c.cek.Bytes(), "carries no signature"},
		"an OCA":           {c.oca.Bytes(), "found OCA where CEK belongs"},
		"cut off":          {signed.Bytes()[:CertificateSize-1], "2083 bytes"},
		"nothing":          {nil, "0 bytes"},
	} {
		if _, err := chain.WithCEK(x.cek); !errors.Is(err, ErrCertificate) || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v, want ErrCertificate with %q", name, err, x.want)
		}
	}
	forged, err := chain.WithCEK(byStranger)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := forged.Verify(roots); !errors.Is(err, ErrUntrusted) {
		t.Errorf("signed with another key: %v, want ErrUntrusted", err)
	}
	got := CEKAddress(slices.Repeat([]byte{0xab}, 64))
	if want := "https://kdsintf.amd.com/cek/id/" + strings.Repeat("ab", 64); got != want {
		t.Errorf("address %s, want %s", got, want)
	}
}

// TestChainEveryBit flips bits of the four certificates, one at a time.
func TestChainEveryBit(t *testing.T) {
	c := newChain(t)
	everyBit(t, c.bytes(), []Root{c.root}, 101)
}

// everyBit flips one bit in step, and one in three at least of the headers. Flips that
// the parser lets through cost four signature checks each, so of those in the long
// random fields a regular sample is verified, and all of the rest.
func everyBit(t *testing.T, all []byte, roots []Root, step int) {
	t.Helper()
	parsed, verified := 0, 0
	for bit := range len(all) * 8 {
		offset := bit / 8 % CertificateSize
		header := offset < offPubkey || offset >= offSig1 && (offset-offSig1)%sigSlotSize < 8
		if bit%step != 0 && !(header && bit%3 == 0) {
			continue
		}
		all[bit/8] ^= 1 << (bit % 8)
		c, err := ParseChain(all[:CertificateSize], all[CertificateSize:])
		if err == nil {
			parsed++
			if header || parsed%97 == 0 {
				verified++
				_, err = c.Verify(roots)
			} else {
				err = errors.New("not in the sample")
			}
		}
		all[bit/8] ^= 1 << (bit % 8)
		if err == nil {
			t.Fatalf("bit %d of certificate %d, offset %d, flipped, and the chain still verifies",
				bit%8, bit/8/CertificateSize, offset)
		}
	}
	if verified < 100 {
		t.Fatalf("only %d flips reached the signatures, want 100", verified)
	}
	t.Logf("%d bits, %d passed the parser, %d of them verified", len(all)*8, parsed, verified)
}

func TestParseCertificateRefusesOtherLengths(t *testing.T) {
	for _, n := range []int{0, 1, CertificateSize - 1, CertificateSize + 1} {
		if _, err := ParseCertificate(make([]byte, n)); !errors.Is(err, ErrCertificate) {
			t.Errorf("%d bytes: %v, want ErrCertificate", n, err)
		}
	}
}

func FuzzParseCertificate(f *testing.F) {
	f.Add(make([]byte, CertificateSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseCertificate(b)
		if err == nil && !slices.Equal(c.Bytes(), b) {
			t.Fatal("certificate does not print as it was read")
		}
		_, _, _ = ParseCACertificate(b)
		_, _ = ParseRoot("fuzz", b)
	})
}
