//go:build !quick

package sev

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// fixture finds test data that may not be distributed with the project.
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

func TestNaplesChainEveryBit(t *testing.T) {
	pdh, certs := naples(t)
	roots, err := AMDRoots()
	if err != nil {
		t.Fatal(err)
	}
	everyBit(t, slices.Concat(pdh, certs), roots, 1)
}
