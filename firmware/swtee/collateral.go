package swtee

import (
	"slices"

	"github.com/vmlatch/vmlatch/firmware/swtee/attest"
)

// AllRootsPEM are the test roots as owners name them to trust them: RootPEM, and the authorities
// over the keys of SEV-SNP and TDX.
func (p *Platform) AllRootsPEM() ([]byte, error) {
	amd, err := p.AMD()
	if err != nil {
		return nil, err
	}
	intel, err := p.Intel()
	if err != nil {
		return nil, err
	}
	return slices.Concat(p.RootPEM(), amd.RootPEM(), intel.RootPEM()), nil
}

// CollateralFile is something by which evidence is judged, as a vendor's server has it.
type CollateralFile struct {
	Name  string
	About string
	Data  []byte
}

// Collateral is all by which the platform's evidence is judged.
func (p *Platform) Collateral(t attest.Terms) ([]CollateralFile, error) {
	amd, err := p.AMD()
	if err != nil {
		return nil, err
	}
	intel, err := p.Intel()
	if err != nil {
		return nil, err
	}
	crl, err := amd.CRL(t)
	if err != nil {
		return nil, damaged(err)
	}
	c, err := intel.Collateral(t)
	if err != nil {
		return nil, damaged(err)
	}
	tdx, err := c.Bytes()
	if err != nil {
		return nil, err
	}
	return []CollateralFile{
		{"cek.cert", "certificate of the SEV chip, signed", p.SignedCEK()},
		{"vcek.der", "certificate of the chip's key", amd.Endorsement(attest.VCEK)},
		{"vcek-behind.der", "the same for firmware that should have been updated", amd.Endorsement(attest.OldVCEK)},
		{"vlek.der", "certificate of the provider's key", amd.Endorsement(attest.VLEK)},
		{"amd-crl.der", "list of AMD's authorities that are revoked", crl},
		{"tdx-collateral.json", "Intel's lists, the states of platforms, the quoting enclave's identity", tdx},
	}, nil
}
