package host

import (
	"github.com/vmlatch/vmlatch/firmware/cpuid"
)

// CPU is what CPUID says.
type CPU struct {
	Vendor string `json:"vendor"` // AuthenticAMD, GenuineIntel
	Name   string `json:"name"`
	Family int    `json:"family"`
	Model  int    `json:"model"`
	// AMD, CPUID Fn8000_001F (APM volume 3)
	SEV         bool `json:"sev,omitempty"`
	SEVES       bool `json:"sev-es,omitempty"`
	SNP         bool `json:"sev-snp,omitempty"`
	CBitPos     int  `json:"cbitpos,omitempty"`        // EBX[5:0]
	ReducedBits int  `json:"phys-bits-lost,omitempty"` // EBX[11:6]
	MaxGuests   int  `json:"max-guests,omitempty"`     // ECX: encrypted guests at once
	MinSEVASID  int  `json:"min-sev-asid,omitempty"`   // EDX: below are SEV-ES and SEV-SNP
	// Intel, CPUID 7.0 ECX[13] (SDM volume 2)
	TME bool `json:"tme,omitempty"`
}

// Vendors.
const (
	vendorAMD   = "AuthenticAMD"
	vendorHygon = "HygonGenuine"
	vendorIntel = "GenuineIntel"
)

func (r Root) cpu() (c CPU, err error) {
	if r.recorded() {
		err = r.readRecorded("cpu.json", &c)
		return c, err
	}
	c = CPU{Vendor: cpuid.Vendor(), Name: cpuid.Name()}
	c.Family, c.Model = cpuid.Signature()
	switch c.Vendor {
	case vendorAMD, vendorHygon:
		m, _ := cpuid.Memory()
		c.SEV, c.SEVES, c.SNP, c.CBitPos, c.ReducedBits = m.SEV, m.SEVES, m.SNP, m.CBitPos, m.ReducedBits
		c.MaxGuests, c.MinSEVASID = m.MaxGuests, m.MinSEVASID
	case vendorIntel:
		c.TME = cpuid.TME()
	}
	return c, nil
}

// Model-specific registers (AMD, APM volume 2, SYSCFG; Intel, SDM volume 4).
const (
	msrSYSCFG            = 0xc0010010
	msrKeyIDPartitioning = 0x87
	msrTMECapability     = 0x981
	msrTMEActivate       = 0x982
)

// Bits of SYSCFG.
const syscfgSNP = 1 << 24

// Bits of IA32_TME_ACTIVATE.
const (
	tmeEnabled       = 1 << 1
	tmeKeyIDBits     = 32 // 35:32
	tmeTDXKeyIDBits  = 36 // 39:36
	tmeKeyIDBitsMask = 0xf
)
