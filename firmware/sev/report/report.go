package report

import (
	"encoding/binary"
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/internal/octets"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
)

// Size is the length of a report in bytes.
const Size = 0x4a0

// Offsets of fields (SNP ABI, table 23).
const (
	offVersion     = 0x000
	offGuestSVN    = 0x004
	offPolicy      = 0x008
	offFamilyID    = 0x010
	offImageID     = 0x020
	offVMPL        = 0x030
	offAlgorithm   = 0x034
	offCurrent     = 0x038
	offPlatform    = 0x040
	offSigner      = 0x048
	offReserved4c  = 0x04c
	offReportData  = 0x050
	offMeasurement = 0x090
	offHostData    = 0x0c0
	offIDKey       = 0x0e0
	offAuthorKey   = 0x110
	offReportID    = 0x140
	offReportIDMA  = 0x160
	offReported    = 0x180
	offCPUID       = 0x188
	offReserved18b = 0x18b
	offChipID      = 0x1a0
	offCommitted   = 0x1e0
	offBuild       = 0x1e8
	offCommittedB  = 0x1ec
	offLaunch      = 0x1f0
	offLaunchMit   = 0x1f8
	offCurrentMit  = 0x200
	offReserved208 = 0x208
	offSignature   = 0x2a0
	offS           = offSignature + 72
	offTail        = offS + 72
)

// VMPLHost is the privilege level in a report that the host has asked for.
const VMPLHost = 0xffffffff

// PlatformInfo are properties of a platform (SNP ABI, table 24, PLATFORM_INFO).
type PlatformInfo uint64

// Bits of PLATFORM_INFO.
const (
	PlatformSMT              PlatformInfo = 1 << 0
	PlatformTSME             PlatformInfo = 1 << 1
	PlatformECC              PlatformInfo = 1 << 2
	PlatformNoRAPL           PlatformInfo = 1 << 3
	PlatformCiphertextHiding PlatformInfo = 1 << 4
	PlatformAliasCheck       PlatformInfo = 1 << 5
	PlatformTIO              PlatformInfo = 1 << 7
)

// Words names the properties.
func (p PlatformInfo) Words() []string {
	words := []string{}
	for _, n := range []struct {
		bit  PlatformInfo
		name string
	}{
		{PlatformSMT, "smt"},
		{PlatformTSME, "tsme"},
		{PlatformECC, "ecc"},
		{PlatformNoRAPL, "rapl-off"},
		{PlatformCiphertextHiding, "ciphertext-hiding"},
		{PlatformAliasCheck, "alias-check"},
		{PlatformTIO, "tio"},
	} {
		if p&n.bit != 0 {
			words = append(words, n.name)
		}
	}
	return words
}

// Report is an attestation report, field by field. TCBs are as they lie there: what they mean
// depends on the line of processors.
type Report struct {
	Version      uint32
	GuestSVN     uint32
	Policy       sev.SNPPolicy
	FamilyID     [16]byte
	ImageID      [16]byte
	VMPL         uint32
	Algorithm    uint32
	CurrentTCB   uint64
	Platform     PlatformInfo
	SignerInfo   uint32
	ReportData   [64]byte
	Measurement  [48]byte
	HostData     [32]byte
	IDKeyDigest  [48]byte
	AuthorKey    [48]byte // its digest
	ReportID     [32]byte
	ReportIDMA   [32]byte
	ReportedTCB  uint64
	Family       uint8 // CPUID, combined; 0 in version 2, as the next two
	Model        uint8
	Stepping     uint8
	ChipID       [64]byte
	CommittedTCB uint64
	Current      sev.Build
	Committed    sev.Build
	LaunchTCB    uint64
	LaunchMit    uint64 // mitigation vectors, version 5
	CurrentMit   uint64
	Raw          [Size]byte
}

// Parse reads a report. It judges nothing but the length.
func Parse(b []byte) (*Report, error) {
	if len(b) != Size {
		return nil, refusal.New(refusal.ReportSize).Because("there are %d", len(b))
	}
	le := binary.LittleEndian
	build := func(off int) sev.Build { return sev.Build{Build: b[off], Minor: b[off+1], Major: b[off+2]} }
	r := &Report{
		Version: le.Uint32(b[offVersion:]), GuestSVN: le.Uint32(b[offGuestSVN:]),
		Policy: sev.SNPPolicy(le.Uint64(b[offPolicy:])), VMPL: le.Uint32(b[offVMPL:]),
		Algorithm: le.Uint32(b[offAlgorithm:]), CurrentTCB: le.Uint64(b[offCurrent:]),
		Platform: PlatformInfo(le.Uint64(b[offPlatform:])), SignerInfo: le.Uint32(b[offSigner:]),
		ReportedTCB: le.Uint64(b[offReported:]), Family: b[offCPUID], Model: b[offCPUID+1], Stepping: b[offCPUID+2],
		CommittedTCB: le.Uint64(b[offCommitted:]), Current: build(offBuild), Committed: build(offCommittedB),
		LaunchTCB: le.Uint64(b[offLaunch:]), LaunchMit: le.Uint64(b[offLaunchMit:]),
		CurrentMit: le.Uint64(b[offCurrentMit:]),
	}
	for off, to := range r.arrays() {
		copy(to, b[off:])
	}
	copy(r.Raw[:], b)
	return r, nil
}

// Bits of the signer's word.
const (
	signerAuthorKey  = 1 << 0
	signerMaskChip   = 1 << 1
	signerKeyShift   = 2
	signerKeyMask    = 7
	signerNoKey      = 7
	signerKnownBits  = 0x1f
	algorithmP384    = 1
	leastVersion     = 2
	mostVersion      = 5
	versionWithCPUID = 3
	versionWithMit   = 5
)

// Signer is the kind of the key that signed the report.
func (r *Report) Signer() kds.Signer {
	return kds.Signer(r.SignerInfo >> signerKeyShift & signerKeyMask)
}

// HasAuthorKey reports whether an author key signed the ID key.
func (r *Report) HasAuthorKey() bool { return r.SignerInfo&signerAuthorKey != 0 }

// Masked reports whether the host keeps the chip's ID back.
func (r *Report) Masked() bool {
	return r.SignerInfo&signerMaskChip != 0 || octets.AllZero(r.ChipID[:])
}

// Line is the line of processors that the report names. Version 2 names none.
func (r *Report) Line() (l kds.Line, known bool) {
	if r.Version < versionWithCPUID {
		return "", false
	}
	return kds.LineOf(r.Family, r.Model)
}

// Form is a refusal unless all fields are as some version has them.
func (r *Report) Form() error {
	if r.Version < leastVersion || r.Version > mostVersion {
		return refusal.New(refusal.ReportVersion).Value("VERSION", fmt.Sprint(r.Version), "")
	}
	zero := []struct{ from, to int }{
		{offReserved4c, offReportData},
		{offReserved18b, offChipID},
		{offBuild + 3, offCommittedB},
		{offCommittedB + 3, offLaunch},
		{offReserved208, offSignature},
		{offSignature + 48, offS},
		{offS + 48, offTail},
		{offTail, Size},
	}
	if r.Version < versionWithCPUID {
		zero = append(zero, struct{ from, to int }{offCPUID, offReserved18b})
	}
	if r.Version < versionWithMit {
		zero = append(zero, struct{ from, to int }{offLaunchMit, offReserved208})
	}
	for _, z := range zero {
		if !octets.AllZero(r.Raw[z.from:z.to]) {
			return refusal.New(refusal.ReportReserved).Because("bytes %#x to %#x must be zero", z.from, z.to-1)
		}
	}
	if err := r.Policy.Check(); err != nil {
		return refusal.New(refusal.ReportReserved).Because("%v", err)
	}
	if r.SignerInfo&^signerKnownBits != 0 {
		return refusal.New(refusal.ReportReserved).Value("KEY_INFO", fmt.Sprintf("%#x", r.SignerInfo), "")
	}
	if r.Algorithm != algorithmP384 {
		return refusal.New(refusal.SignatureAlgorithm).Value("SIGNATURE_ALGO", fmt.Sprint(r.Algorithm), "1")
	}
	if s := r.Signer(); s != kds.VCEK && s != kds.VLEK {
		return refusal.New(refusal.Signer).Value("SIGNING_KEY", fmt.Sprint(uint8(s)), "")
	}
	return nil
}
