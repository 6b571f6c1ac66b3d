package swtee

import (
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/sev"
)

// What KVM and the firmware of a real host refuse of a policy.
func TestSNPPolicyRefused(t *testing.T) {
	fw := NewFirmware(platform(t))
	for _, c := range []struct {
		policy sev.SNPPolicy
		want   error
	}{
		{sev.SNPPolicyDefault, nil},
		{sev.SNPPolicyDefault | sev.SNPPolicyDebug | sev.SNPPolicySingleSocket, nil},
		{sev.SNPPolicySMT, unix.EINVAL},
		{sev.SNPPolicyDefault | sev.SNPPolicyMigrate, unix.EINVAL},
		{sev.SNPPolicyDefault | sev.SNPPolicyCXL, unix.EINVAL},
		{sev.SNPPolicyDefault | sev.SNPPolicyAES256, unix.EINVAL},
		{sev.SNPPolicyDefault | sev.SNPPolicyNoRAPL, unix.EINVAL},
		{sev.SNPPolicyDefault | sev.SNPPolicyCiphertextHiding, unix.EINVAL},
		{sev.SNPPolicyDefault | 0x0138, sev.StatusPolicyFailure}, // ABI 1.56
		{sev.SNPPolicyReserved, sev.StatusPolicyFailure},         // no SMT
	} {
		if err := fw.NewSNPGuest().LaunchStart(uint64(c.policy)); !errors.Is(err, c.want) {
			t.Errorf("policy %v: %v, want %v", c.policy, err, c.want)
		}
	}
}

// A page is private once loaded, and cannot be loaded again.
func TestPagesLoadOnce(t *testing.T) {
	fw := NewFirmware(platform(t))
	g := fw.NewSNPGuest()
	td := fw.NewTD()
	if err := errors.Join(g.LaunchStart(uint64(sev.SNPPolicyDefault)), td.InitVM(TDParams{XFAM: 3})); err != nil {
		t.Fatal(err)
	}
	page := make([]byte, sev.PageSize)
	if err := g.LaunchUpdate(sev.PageNormal, 0x1000, page); err != nil {
		t.Fatal(err)
	}
	if err := g.LaunchUpdate(sev.PageZero, 0, make([]byte, 2*sev.PageSize)); !errors.Is(err, unix.EEXIST) {
		t.Errorf("SEV-SNP, a page twice: %v, want %v", err, unix.EEXIST)
	}
	if err := td.InitMemRegion(0x1000, page, true); err != nil {
		t.Fatal(err)
	}
	if err := td.InitMemRegion(0x1000, page, false); !errors.Is(err, unix.EIO) {
		t.Errorf("TDX, a page twice: %v, want %v", err, unix.EIO)
	}
	if err := errors.Join(td.InitVCPU(0), td.InitVCPU(1)); err != nil {
		t.Fatal(err)
	}
	if err := td.InitVCPU(1); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a vCPU twice: %v, want %v", err, unix.EINVAL)
	}
}

func TestCPUIDPageTooLong(t *testing.T) {
	g := NewFirmware(platform(t)).NewSNPGuest()
	if err := g.LaunchStart(uint64(sev.SNPPolicyDefault)); err != nil {
		t.Fatal(err)
	}
	page := make([]byte, sev.PageSize)
	binary.LittleEndian.PutUint32(page, 65)
	if err := g.LaunchUpdate(sev.PageCPUID, 0, page); !errors.Is(err, sev.StatusInvalidParam) {
		t.Errorf("65 functions: %v, want %v", err, sev.StatusInvalidParam)
	}
	binary.LittleEndian.PutUint32(page, 64)
	if err := g.LaunchUpdate(sev.PageCPUID, 0, page); err != nil {
		t.Errorf("64 functions: %v, want nil", err)
	}
}

// KVM lets one attribute through, and the module needs x87 and SSE.
func TestTDParamsRefused(t *testing.T) {
	fw := NewFirmware(platform(t))
	for _, c := range []struct {
		p    TDParams
		want error
	}{
		{TDParams{Attributes: 1 << 28, XFAM: 7}, nil},
		{TDParams{Attributes: 1, XFAM: 7}, unix.EINVAL},       // DEBUG
		{TDParams{Attributes: 1 << 30, XFAM: 7}, unix.EINVAL}, // PKS
		{TDParams{XFAM: 4}, unix.EINVAL},
	} {
		if err := fw.NewTD().InitVM(c.p); !errors.Is(err, c.want) {
			t.Errorf("%+x: %v, want %v", c.p, err, c.want)
		}
	}
}
