package sev

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// fixtures finds test data that may not be distributed with the project.
func fixture(t testing.TB, elem ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{"..", "..", "..", "shared", "testdata"}, elem...)...))
	if err != nil {
		t.Skipf("fixture may not be distributed and is not here: %v", err)
	}
	return b
}

func naples(t testing.TB) (pdh, chain []byte) {
	part := func(name string) []byte { return fixture(t, "sev-chain-naples", name) }
	return part("pdh.cert"), slices.Concat(part("pek.cert"), part("oca.cert"), part("cek.cert"))
}

func TestAMDRoots(t *testing.T) {
	roots, err := AMDRoots()
	if err != nil {
		t.Fatal(err)
	}
	if len(roots) != 5 {
		t.Fatalf("%d roots, want 5", len(roots))
	}
}

func TestNaplesChainVerifies(t *testing.T) {
	pdh, certs := naples(t)
	roots, err := AMDRoots()
	if err != nil {
		t.Fatal(err)
	}
	c, err := ParseChain(pdh, certs)
	if err != nil {
		t.Fatal(err)
	}
	root, err := c.Verify(roots)
	if err != nil {
		t.Fatal(err)
	}
	if root.Product != "naples" {
		t.Errorf("root %s, want naples", root.Product)
	}
	if _, err := c.Verify(roots[1:]); !errors.Is(err, ErrUntrusted) {
		t.Errorf("without the naples root: %v, want ErrUntrusted", err)
	}
}

// TestNaplesChainEveryBit flips every bit of the four certificates. Flips that
// the parser lets through cost four signature checks each, so of those in the
// long random fields a regular sample is verified, and all of the rest.
func TestNaplesChainEveryBit(t *testing.T) {
	pdh, certs := naples(t)
	roots, err := AMDRoots()
	if err != nil {
		t.Fatal(err)
	}
	all := slices.Concat(pdh, certs)
	parsed, verified := 0, 0
	for bit := range len(all) * 8 {
		offset := bit / 8 % CertificateSize
		all[bit/8] ^= 1 << (bit % 8)
		c, err := ParseChain(all[:CertificateSize], all[CertificateSize:])
		if err == nil {
			parsed++
			header := offset < offPubkey || offset >= offSig1 && (offset-offSig1)%sigSlotSize < 8
			if header || parsed%97 == 0 {
				verified++
				_, err = c.Verify(roots)
			} else {
				err = errors.New("not in the sample")
			}
		}
		all[bit/8] ^= 1 << (bit % 8)
		if err == nil {
			t.Fatalf("bit %d of certificate %d, offset %d, flipped, and the chain still verifies", bit%8, bit/8/CertificateSize, offset)
		}
	}
	if verified < 100 {
		t.Fatalf("only %d flips reached the signatures", verified)
	}
	t.Logf("%d bits flipped, %d passed the parser, %d of them verified", len(all)*8, parsed, verified)
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
