package quote

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/tdx/attr"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
)

// Policy is what the owner demands of a genuine quote. What is nil is not demanded; what is not
// allowed is refused.
type Policy struct {
	MRTD          [][]byte // one of them; 48 bytes each
	RTMR          [4][][]byte
	ReportData    []byte // 64 bytes
	MRConfigID    []byte // 48 bytes, as the next three
	MROwner       []byte
	MROwnerConfig []byte
	MRSEAM        []byte
	XFAM          []byte // 8

	AllowDebug           bool
	AllowNoSEPTVEDisable bool
	AllowAttributes      attr.Attributes // besides SEPT_VE_DISABLE
	AllowServiceTD       bool

	NoCollateral     bool                // judge without, so without the platform's state
	AcceptStatus     []collateral.Status // UpToDate alone, if it is nil
	RejectAdvisories []string
	MinEvaluation    int
	CRLStale         time.Duration // how long lists may be used after their date
	CollateralStale  time.Duration
	FMSPC            [][]byte // families of platforms, 6 bytes each
	Platforms        [][]byte // PPID, its SHA-256, or platform instance ID
	AnyPlatform      bool     // only says that none is demanded on purpose
}

// Check holds the owner's demands against a genuine quote. The error is a refusal.
func (p *Policy) Check(q *Quote, v *Verdict) error {
	for _, check := range []func(*Quote, *Verdict) error{
		p.checkState, p.checkAttributes, p.checkMeasurements, p.checkPlatform,
	} {
		if err := check(q, v); err != nil {
			return err
		}
	}
	return nil
}

// checkState judges the platform's state. No owner can accept a revoked one.
func (p *Policy) checkState(_ *Quote, v *Verdict) error {
	if v.State == nil {
		return nil
	}
	accepted := p.AcceptStatus
	if accepted == nil {
		accepted = []collateral.Status{collateral.UpToDate}
	}
	if s := v.State.Status; s == collateral.Revoked || !slices.Contains(accepted, s) {
		var words []string
		for _, a := range accepted {
			words = append(words, string(a))
		}
		e := refusal.New(refusal.TCBStatus).Value("tcbStatus", string(s), strings.Join(words, " or "))
		if v.Relaunch {
			e.Fix = "launch the guest anew: the host's TDX module is up to date by now"
		}
		return e
	}
	for _, a := range v.State.Advisories {
		if slices.Contains(p.RejectAdvisories, a) {
			return refusal.New(refusal.Advisory).Because("%s", a)
		}
	}
	return nil
}

func (p *Policy) checkAttributes(q *Quote, _ *Verdict) error {
	a := q.Body.Attributes
	not := func(r refusal.Reason) *refusal.Error {
		return refusal.New(r).Value("TDATTRIBUTES", strings.Join(a.Words(), ","), "")
	}
	allowed := p.AllowAttributes&^(attr.Debug|attr.Untrusted) | attr.SEPTVEDisable | attr.Debug
	switch {
	case a&attr.Debug != 0 && !p.AllowDebug:
		return not(refusal.Debug)
	case a&attr.Migratable != 0 && !q.Is15:
		return not(refusal.Attributes).Because("it may be moved, and this quote does not show by whom")
	case a&^allowed != 0:
		return not(refusal.Attributes)
	case a&attr.SEPTVEDisable == 0 && !p.AllowNoSEPTVEDisable:
		return not(refusal.SEPTVEDisable)
	case q.Body.MRServiceTD != [48]byte{} && !p.AllowServiceTD:
		return refusal.New(refusal.ServiceTD).Value("MRSERVICETD", hex.EncodeToString(q.Body.MRServiceTD[:]), "")
	}
	return nil
}

func (p *Policy) checkMeasurements(q *Quote, _ *Verdict) error {
	b := &q.Body
	if err := refusal.Among(refusal.MRTD, "MRTD", b.MRTD[:], p.MRTD); err != nil {
		return err
	}
	for _, f := range []struct {
		reason    refusal.Reason
		field     string
		got, want []byte
	}{
		{refusal.ReportData, "REPORTDATA", b.ReportData[:], p.ReportData},
		{refusal.MRConfigID, "MRCONFIGID", b.MRConfigID[:], p.MRConfigID},
		{refusal.MROwner, "MROWNER", b.MROwner[:], p.MROwner},
		{refusal.MROwnerConfig, "MROWNERCONFIG", b.MROwnerConfig[:], p.MROwnerConfig},
		{refusal.MRSEAM, "MRSEAM", b.MRSEAM[:], p.MRSEAM},
		{refusal.XFAM, "XFAM", b.XFAM[:], p.XFAM},
	} {
		if err := refusal.Exactly(f.reason, f.field, f.got, f.want); err != nil {
			return err
		}
	}
	for i, want := range p.RTMR {
		if err := refusal.Among(refusal.RTMR, fmt.Sprintf("RTMR%d", i), b.RTMR[i][:], want); err != nil {
			return err
		}
	}
	return nil
}

func (p *Policy) checkPlatform(_ *Quote, v *Verdict) error {
	if p.FMSPC != nil && !refusal.Contains(p.FMSPC, v.PCK.FMSPC) {
		return refusal.New(refusal.FMSPCNotAllowed).Value("FMSPC", hex.EncodeToString(v.PCK.FMSPC), "")
	}
	if p.Platforms == nil {
		return nil
	}
	for _, id := range v.PCK.IDs() {
		if refusal.Contains(p.Platforms, id) {
			return nil
		}
	}
	return refusal.New(refusal.PlatformNotAllowed).Value("SHA-256 of PPID", hex.EncodeToString(v.PCK.IDs()[0]), "")
}
