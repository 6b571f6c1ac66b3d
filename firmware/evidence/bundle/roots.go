package bundle

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"path/filepath"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
)

// TestRootPEM is the type of the PEM block that holds the test root of an emulated SEV platform.
const TestRootPEM = "SWTEE TEST ROOT"

// ParseRoots reads test roots: AMD's, Intel's and those of SEV may stand in one file. The name is
// for messages.
func ParseRoots(name string, b []byte) (*Roots, error) {
	if x, err := x509.ParseCertificate(b); err == nil { // DER
		b = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: x.Raw})
	}
	r := &Roots{AMD: &kds.Roots{Emulated: true}, Intel: collateral.NoRoot()}
	amd, err1 := kds.ParseRoots(b)
	intel, err2 := collateral.ParseRoot(b)
	test, err3 := ParseSEVRoot(name, b)
	if err1 != nil && err2 != nil && err3 != nil {
		return nil, fmt.Errorf("%s: it holds no test root: %w; %w; %w", name, err1, err2, err3)
	}
	if err1 == nil {
		r.AMD = amd
	}
	if err2 == nil {
		r.Intel = intel
	}
	if err3 == nil {
		r.SEV = append(r.SEV, test)
	}
	return r, nil
}

// ParseSEVRoot reads the test root of SEV platforms.
func ParseSEVRoot(name string, b []byte) (root sev.Root, err error) {
	block, rest := pem.Decode(b)
	for block != nil && block.Type != TestRootPEM {
		block, rest = pem.Decode(rest)
	}
	if block == nil {
		return root, fmt.Errorf("%s: does not hold a %q; \"swtee root\" prints it", name, TestRootPEM)
	}
	if root, err = sev.ParseRoot("the test root "+filepath.Base(name), block.Bytes); err != nil {
		return root, fmt.Errorf("%s: %w", name, err)
	}
	return root, nil
}
