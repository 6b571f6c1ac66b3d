package report

import (
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
)

// Policy is what the owner demands of a genuine report. What is nil is not demanded; what is
// not allowed is refused.
type Policy struct {
	Measurements [][]byte // one of them; 48 bytes each
	ReportData   []byte   // 64 bytes
	HostData     []byte   // 32
	IDKeyDigest  []byte   // 48
	AuthorKey    []byte   // its digest, 48
	FamilyID     []byte   // 16
	ImageID      []byte   // 16
	VMPL         *uint32

	AllowDebug          bool
	AllowSMT            bool
	AllowMigrationAgent bool
	AllowProvisional    bool // firmware that the host may roll back
	AllowVLEK           bool
	RequireSingleSocket bool
	RequireAliasCheck   bool
	RequireCRL          bool
	CRLStale            time.Duration // how long a list may be used after its date

	// Guest bounds the guest's policy: it may allow nothing more and must demand as much.
	Guest *sev.SNPPolicy

	MinTCB      map[kds.Line]map[string]uint8 // by component
	MinFirmware *sev.Build
	MinGuestSVN uint32
	LaunchMit   uint64   // bits that must be set
	CurrentMit  uint64   //
	Chips       [][]byte // as certificates have them: 64 bytes, or 8 for Turin
	AnyChip     bool     // only says that none is demanded on purpose
}

// Check holds the owner's demands against a genuine report. The error is a refusal.
func (p *Policy) Check(r *Report, c *kds.Certificate) error {
	for _, check := range []func(*Report, *kds.Certificate) error{
		p.checkGuest, p.checkPlatform, p.checkLaunch, p.checkChip,
	} {
		if err := check(r, c); err != nil {
			return err
		}
	}
	return nil
}

// checkGuest judges the guest's policy.
func (p *Policy) checkGuest(r *Report, c *kds.Certificate) error {
	has := func(bit sev.SNPPolicy) bool { return r.Policy&bit != 0 }
	policy := func(reason refusal.Reason) error {
		return refusal.New(reason).Value("POLICY", r.Policy.String(), "")
	}
	switch {
	case has(sev.SNPPolicyDebug) && !p.AllowDebug:
		return policy(refusal.Debug)
	case has(sev.SNPPolicyMigrate) && !p.AllowMigrationAgent:
		return policy(refusal.MigrationAgent)
	case has(sev.SNPPolicySMT) && !p.AllowSMT:
		return policy(refusal.SMT)
	case !has(sev.SNPPolicySingleSocket) && p.RequireSingleSocket:
		return policy(refusal.SingleSocket)
	case p.Guest != nil && !r.Policy.Covers(*p.Guest):
		return refusal.New(refusal.GuestPolicy).Value("POLICY", r.Policy.String(), p.Guest.String())
	case c.Signer == kds.VLEK && !p.AllowVLEK:
		return refusal.New(refusal.VLEK).Because("of %s", c.CSP)
	}
	return nil
}

// Provisional is a refusal of firmware that the host may roll back: a newer one runs than is
// committed.
func (r *Report) Provisional(l kds.Line) error {
	current, committed := kds.ParseTCB(r.CurrentTCB, l), kds.ParseTCB(r.CommittedTCB, l)
	if below := committed.Below(current); below.Name != "" {
		return refusal.New(refusal.Provisional).Because("%s is %d, and %d is committed", below.Name,
			below.In(current), below.In(committed))
	}
	if olderBuild(r.Committed, r.Current) {
		return refusal.New(refusal.Provisional).Because("the firmware is %v, and %v is committed",
			r.Current, r.Committed)
	}
	return nil
}

// checkPlatform judges the host's firmware.
func (p *Policy) checkPlatform(r *Report, c *kds.Certificate) error {
	if err := r.Provisional(c.Line); err != nil && !p.AllowProvisional {
		return err
	}
	if p.RequireAliasCheck && r.Platform&PlatformAliasCheck == 0 {
		return refusal.New(refusal.AliasCheck)
	}
	reported := kds.ParseTCB(r.ReportedTCB, c.Line)
	if p.MinTCB != nil && len(p.MinTCB[c.Line]) == 0 {
		return refusal.New(refusal.TCBBelowMinimum).Because("you have given no minimum for %s", c.Line)
	}
	for _, component := range kds.Components() {
		least := p.MinTCB[c.Line][component.Name]
		if is := component.In(reported); is < least {
			return refusal.New(refusal.TCBBelowMinimum).Value(component.Name, fmt.Sprint(is),
				fmt.Sprintf("%d or above", least))
		}
	}
	if least := p.MinFirmware; least != nil && !r.Committed.AtLeast(least.Major, least.Minor) {
		return refusal.New(refusal.FirmwareVersion).Value("the committed version", r.Committed.String(),
			fmt.Sprintf("%d.%d or newer", least.Major, least.Minor))
	}
	return nil
}

// olderBuild reports whether a firmware is older than another.
func olderBuild(a, b sev.Build) bool {
	x, y := []uint8{a.Major, a.Minor, a.Build}, []uint8{b.Major, b.Minor, b.Build}
	return slices.Compare(x, y) < 0
}

// checkLaunch judges what was launched, and what it was asked for.
func (p *Policy) checkLaunch(r *Report, _ *kds.Certificate) error {
	switch {
	case r.GuestSVN < p.MinGuestSVN:
		return refusal.New(refusal.GuestSVN).Value("GUEST_SVN", fmt.Sprint(r.GuestSVN),
			fmt.Sprintf("%d or above", p.MinGuestSVN))
	case r.LaunchMit&p.LaunchMit != p.LaunchMit:
		return refusal.New(refusal.Mitigation).Value("LAUNCH_MIT_VECTOR", fmt.Sprintf("%#x", r.LaunchMit),
			fmt.Sprintf("%#x at least", p.LaunchMit))
	case r.CurrentMit&p.CurrentMit != p.CurrentMit:
		return refusal.New(refusal.Mitigation).Value("CURRENT_MIT_VECTOR", fmt.Sprintf("%#x", r.CurrentMit),
			fmt.Sprintf("%#x at least", p.CurrentMit))
	case r.VMPL == VMPLHost:
		return refusal.New(refusal.VMPL).Because("the host has asked for it, not the guest")
	case r.VMPL > 3:
		return refusal.New(refusal.VMPL).Value("VMPL", fmt.Sprint(r.VMPL), "0 to 3")
	case p.VMPL != nil && r.VMPL != *p.VMPL:
		return refusal.New(refusal.VMPL).Value("VMPL", fmt.Sprint(r.VMPL), fmt.Sprint(*p.VMPL))
	}
	if err := refusal.Among(refusal.Measurement, "MEASUREMENT", r.Measurement[:], p.Measurements); err != nil {
		return err
	}
	for _, f := range []struct {
		reason    refusal.Reason
		field     string
		got, want []byte
	}{
		{refusal.ReportData, "REPORT_DATA", r.ReportData[:], p.ReportData},
		{refusal.HostData, "HOST_DATA", r.HostData[:], p.HostData},
		{refusal.IDKey, "ID_KEY_DIGEST", r.IDKeyDigest[:], p.IDKeyDigest},
		{refusal.AuthorKey, "AUTHOR_KEY_DIGEST", r.AuthorKey[:], p.AuthorKey},
		{refusal.FamilyID, "FAMILY_ID", r.FamilyID[:], p.FamilyID},
		{refusal.ImageID, "IMAGE_ID", r.ImageID[:], p.ImageID},
	} {
		if err := refusal.Exactly(f.reason, f.field, f.got, f.want); err != nil {
			return err
		}
	}
	if p.AuthorKey != nil && !r.HasAuthorKey() {
		return refusal.New(refusal.AuthorKey)
	}
	return nil
}

// checkChip holds the chip against the owner's list. Only a VCEK proves which chip it is.
func (p *Policy) checkChip(r *Report, c *kds.Certificate) error {
	if p.Chips == nil {
		return nil
	}
	switch {
	case c.Signer != kds.VCEK:
		return refusal.New(refusal.ChipNotAllowed).Because("a VLEK names none")
	case r.Masked():
		return refusal.New(refusal.ChipNotAllowed).Because("the host masks its ID")
	case !refusal.Contains(p.Chips, c.HWID):
		return refusal.New(refusal.ChipNotAllowed).Value("CHIP_ID", hex.EncodeToString(c.HWID), "")
	}
	return nil
}
