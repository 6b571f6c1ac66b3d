package evidence_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence"
	"github.com/vmlatch/vmlatch/firmware/evidence/bundle"
	"github.com/vmlatch/vmlatch/firmware/evidence/evidencetest"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
	"github.com/vmlatch/vmlatch/firmware/tdx/ccel"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
	"github.com/vmlatch/vmlatch/firmware/tdx/quote"
	"github.com/vmlatch/vmlatch/firmware/tdx/rtmr"
)

// court is where tests bring evidence.
type court struct {
	amd     *evidencetest.AMD
	ek      *evidencetest.Endorsed
	intel   *evidencetest.Intel
	sources evidence.Sources
	demands evidence.Demands
	at      time.Time
}

func newCourt(t *testing.T) *court {
	t.Helper()
	c := &court{amd: evidencetest.NewAMD(t, kds.Milan, 0), intel: evidencetest.NewIntel(t), at: evidencetest.AsOf()}
	c.ek = c.amd.VCEK(t)
	c.sources.Roots = bundle.Roots{AMD: evidencetest.Roots(t, c.amd), Intel: c.intel.Root(t)}
	bound := sev.SNPPolicyReserved | sev.SNPPolicySMT
	c.demands = evidence.Demands{
		Name: "court", Report: &report.Policy{Guest: &bound, AllowSMT: true, AnyChip: true, VMPL: new(uint32)},
		Quote: &quote.Policy{AnyPlatform: true},
	}
	return c
}

func (c *court) keep(t *testing.T, parts ...bundle.Part) {
	t.Helper()
	if c.sources.Bundle == nil {
		c.sources.Bundle = bundle.New()
	}
	for _, p := range parts {
		if _, err := c.sources.Bundle.Add(p, c.sources.Roots); err != nil {
			t.Fatal(err)
		}
	}
}

func (c *court) judge(t *testing.T, raw []byte) (*evidence.Verdict, refusal.Reason) {
	t.Helper()
	e, err := evidence.Recognise(raw)
	if err != nil {
		t.Fatal(err)
	}
	v := evidence.Judge(e, &c.sources, &c.demands, c.at)
	if v.Refusal == nil {
		if !v.Accepted || !v.Genuine || len(v.Proven) == 0 {
			t.Errorf("not refused, and yet %+v", v)
		}
		return v, ""
	}
	if v.Accepted || len(v.Proven) > 0 {
		t.Errorf("refused, and yet %+v", v)
	}
	return v, v.Refusal.Reason
}

// table is a certificate table as hosts put it behind a report.
func table(der []byte) []byte {
	b := make([]byte, 48)
	g := report.GUIDVCEK
	copy(b, g[:])
	b[16], b[20], b[21] = 48, byte(len(der)), byte(len(der)>>8)
	return append(b, der...)
}

// TestWhichCertificate: the one that is given comes first, then the bundle's, then what came
// with the report.
func TestWhichCertificate(t *testing.T) {
	c := newCourt(t)
	raw, der := c.ek.Report(t), c.ek.Cert.Raw
	if v, reason := c.judge(t, raw); reason != refusal.EKMissing ||
		!strings.Contains(v.Refusal.Fix, "/vcek/v1/Milan/") {
		t.Errorf("without a certificate: %q, %q helps", reason, v.Refusal.Fix)
	}
	v, reason := c.judge(t, append(slices.Clone(raw), table(der)...))
	if reason != "" || v.Chip == "" || v.Root != "ARK-Milan" {
		t.Errorf("from the table: %q, %+v", reason, v)
	}
	other := c.amd.EndorsedFor(t, kds.TCB{SNP: 1}).Cert.Raw
	if _, reason := c.judge(t, append(slices.Clone(raw), table(other)...)); reason != refusal.EKMissing {
		t.Errorf("from a table for another TCB: %q", reason)
	}
	if _, reason := c.judge(t, append(slices.Clone(raw), table([]byte("noise"))...)); reason != refusal.CertProfile {
		t.Errorf("from a damaged table: %q", reason)
	}
	c.keep(t, bundle.Part{Kind: bundle.Endorsement, Data: der})
	if _, reason := c.judge(t, raw); reason != "" {
		t.Errorf("from the bundle: %q", reason)
	}
	c.sources.EK = []byte("noise")
	if _, reason := c.judge(t, raw); reason != refusal.CertProfile {
		t.Errorf("a certificate that is given and damaged: %q", reason)
	}
	masked := c.ek.Report(t, func(b []byte) { clear(b[0x1a0:0x1e0]) })
	c.sources.EK, c.sources.Bundle = nil, nil
	if v, _ := c.judge(t, masked); strings.Contains(v.Refusal.Fix, "kdsintf") {
		t.Errorf("a masked chip has no address: %q", v.Refusal.Fix)
	}
	c.sources.EK = der
	if v, reason := c.judge(t, masked); reason != "" || v.Chip != "" {
		t.Errorf("masked: %q, chip %q", reason, v.Chip)
	}
}

// TestWhichList: lists come from a file or from the bundle; a damaged one is never overlooked.
func TestWhichList(t *testing.T) {
	c := newCourt(t)
	c.sources.EK, c.demands.Report.RequireCRL = c.ek.Cert.Raw, true
	raw := c.ek.Report(t)
	if _, reason := c.judge(t, raw); reason != refusal.CRLMissing {
		t.Errorf("without a list: %q", reason)
	}
	c.sources.CRL = []byte("noise")
	if _, reason := c.judge(t, raw); reason != refusal.CRLMalformed {
		t.Errorf("a damaged list: %q", reason)
	}
	c.sources.CRL = c.amd.CRL(t)
	v, reason := c.judge(t, raw)
	if reason != "" || v.Until == nil || !v.Until.Before(evidencetest.End()) {
		t.Errorf("with a list: %q, until %v, want it until the list's end", reason, v.Until)
	}
	c.sources.CRL = nil
	c.keep(t, bundle.Part{Kind: bundle.AMDCRL, Data: c.amd.CRL(t, evidencetest.SerialASK)})
	if _, reason := c.judge(t, raw); reason != refusal.Revoked {
		t.Errorf("revoked by the bundle's list: %q", reason)
	}
}

// TestWhatIsNotProven: what evidence leaves open is said each time, and never under the other
// heading.
func TestWhatIsNotProven(t *testing.T) {
	c := newCourt(t)
	c.sources.EK = c.ek.Cert.Raw
	c.demands.Report = &report.Policy{
		AllowDebug: true, AllowSMT: true, AllowMigrationAgent: true, AllowProvisional: true, AllowVLEK: true,
	}
	for name, x := range map[string]struct {
		change func(b []byte)
		want   string
	}{
		"debug":           {func(b []byte) { b[0x0a] |= 1 << 3 }, "debugging is allowed"},
		"migration agent": {func(b []byte) { b[0x0a] |= 1 << 2 }, "migration agent"},
		"VMPL":            {func(b []byte) { b[0x30] = 2 }, "VMPL 2"},
		"provisional":     {func(b []byte) { b[0x1ec] = 0 }, "roll it back"},
		"always":          {func([]byte) {}, "on disks"},
		"no list":         {func([]byte) {}, "there is no list"},
		"no minimum":      {func([]byte) {}, "outdated"},
		"no digest":       {func([]byte) {}, "digest was not compared"},
		"no report data":  {func([]byte) {}, "report data were not compared"},
		"which chip":      {func([]byte) {}, "which chip"},
	} {
		v, reason := c.judge(t, c.ek.Report(t, x.change))
		if reason != "" || !strings.Contains(strings.Join(v.NotProven, "\n"), x.want) ||
			strings.Contains(strings.Join(v.Proven, "\n"), x.want) {
			t.Errorf("%s: %q\nproven %q\nnot proven %q\nwant %q there", name, reason, v.Proven, v.NotProven, x.want)
		}
	}
	vlek := c.amd.VLEK(t)
	c.sources.EK = vlek.Cert.Raw
	if v, reason := c.judge(t, vlek.Report(t)); reason != "" ||
		!strings.Contains(strings.Join(v.NotProven, "\n"), "provider's hands") {
		t.Errorf("VLEK: %q, %q", reason, v.NotProven)
	}
}

// TestLogs: a log is used if it leads to the quote's registers, and refused if not.
func TestLogs(t *testing.T) {
	c := newCourt(t)
	own, err := collateral.Parse(c.intel.Collateral(t))
	if err != nil {
		t.Fatal(err)
	}
	c.sources.Collateral = own
	l := &ccel.Log{Events: []ccel.Event{
		evidencetest.Hashed(0, 1, []byte("settings")), evidencetest.Hashed(1, 1, []byte("a kernel")),
	}}
	registers := l.Replay()
	raw := c.intel.Platform(t, true).Quote(t, func(q *evidencetest.QuoteParts) {
		for i := range registers {
			copy(q.Body[evidencetest.OffRTMR0+48*i:], registers[i][:])
		}
	})
	v, reason := c.judge(t, raw)
	if reason != "" || v.LogMatches || v.Log() != nil || v.State == nil {
		t.Errorf("without a log: %q, %+v", reason, v)
	}
	if c.demands.Hardware, err = rtmr.NewHardware(l); err != nil {
		t.Fatal(err)
	}
	if _, reason := c.judge(t, raw); reason != refusal.EventLogMissing {
		t.Errorf("with a profile and without a log: %q", reason)
	}
	c.sources.Log = evidencetest.Log(l.Events...)
	if v, reason := c.judge(t, raw); reason != "" || !v.LogMatches || v.Log() == nil {
		t.Errorf("with its log: %q, %+v", reason, v)
	}
	for name, x := range map[string]struct {
		log  []byte
		want refusal.Reason
	}{
		"of another boot": {evidencetest.Log(l.Events[0]), refusal.CCELMismatch},
		"noise":           {[]byte("noise"), refusal.CCELMalformed},
		"cut off":         {c.sources.Log[:len(c.sources.Log)-1], refusal.CCELMalformed},
	} {
		c.sources.Log = x.log
		if v, reason := c.judge(t, raw); reason != x.want || v.LogMatches || v.Log() != nil {
			t.Errorf("%s: %q, %+v, want %q", name, reason, v, x.want)
		}
	}
	c.sources.Log = evidencetest.Log(l.Events...)
	if c.demands.Hardware, err = rtmr.NewHardware(&ccel.Log{Events: l.Events[1:]}); err == nil {
		t.Error("a profile of nothing is made")
	}
	c.demands.Hardware = &rtmr.Hardware{Events: []rtmr.Fixed{{Digest: strings.Repeat("0", 96)}}}
	if _, reason := c.judge(t, raw); reason != refusal.RTMR {
		t.Errorf("another profile: %q", reason)
	}
}

// TestNoDemands: of a technology of which the owner says nothing, nothing is accepted.
func TestNoDemands(t *testing.T) {
	c := newCourt(t)
	c.demands = evidence.Demands{Name: "court"}
	for _, raw := range [][]byte{c.ek.Report(t), c.intel.Platform(t, true).Quote(t)} {
		if _, reason := c.judge(t, raw); reason != refusal.NoPolicy {
			t.Errorf("%q, want %q", reason, refusal.NoPolicy)
		}
	}
}

// TestCollateralFromBundle: what the bundle has is used unless other collateral is given.
func TestCollateralFromBundle(t *testing.T) {
	c := newCourt(t)
	raw := c.intel.Platform(t, true).Quote(t)
	if _, reason := c.judge(t, raw); reason != refusal.CollateralMissing {
		t.Errorf("without collateral: %q", reason)
	}
	good, err := collateral.Parse(c.intel.Collateral(t))
	if err != nil {
		t.Fatal(err)
	}
	c.keep(t, bundle.FromCollateral(good)...)
	if v, reason := c.judge(t, raw); reason != "" || v.State == nil || v.State.Status != collateral.UpToDate {
		t.Errorf("from the bundle: %q, %+v", reason, v.State)
	}
	revoked, err := collateral.Parse(c.intel.Collateral(t, func(p *evidencetest.Parts) {
		p.RevokedPCK = []int64{evidencetest.SerialPCK}
	}))
	if err != nil {
		t.Fatal(err)
	}
	c.sources.Collateral = revoked
	if _, reason := c.judge(t, raw); reason != refusal.Revoked {
		t.Errorf("given: %q", reason)
	}
	flipped := bytes.Clone(raw)
	flipped[60] ^= 1
	c.sources.Collateral = good
	if v, reason := c.judge(t, flipped); reason != refusal.Signature || v.Genuine {
		t.Errorf("a bit of the body: %q, %+v", reason, v)
	}
}

// TestForm: a report whose form is wrong is refused, whatever else is demanded.
func TestForm(t *testing.T) {
	c := newCourt(t)
	c.sources.EK = c.ek.Cert.Raw
	for name, x := range map[string]struct {
		change func(b []byte)
		want   refusal.Reason
	}{
		"version":        {func(b []byte) { b[0] = 6 }, refusal.ReportVersion},
		"reserved":       {func(b []byte) { b[0x210] = 1 }, refusal.ReportReserved},
		"the host asked": {func(b []byte) { copy(b[0x30:], "\xff\xff\xff\xff") }, refusal.VMPL},
	} {
		if _, reason := c.judge(t, c.ek.Report(t, x.change)); reason != x.want {
			t.Errorf("%s: %q, want %q", name, reason, x.want)
		}
	}
}

// TestWhatIsNotProvenOfDomains is TestWhatIsNotProven for quotes.
func TestWhatIsNotProvenOfDomains(t *testing.T) {
	const attributes = 120 // in a quote's body
	plain := func(*evidencetest.QuoteParts) {}
	for name, x := range map[string]struct {
		change func(q *evidencetest.QuoteParts)
		set    func(c *court)
		want   string
		proven bool
	}{
		"debug":    {func(q *evidencetest.QuoteParts) { q.Body[attributes] |= 1 }, nil, "debugging is on", false},
		"no debug": {plain, nil, "cannot read or write the domain's memory", true},
		"pages": {
			func(q *evidencetest.QuoteParts) { q.Body[attributes+3] &^= 0x10 },
			nil, "SEPT_VE_DISABLE", false,
		},
		"no collateral": {plain, func(c *court) { c.sources.Collateral = nil }, "there is no collateral", false},
		"what runs":     {plain, nil, "what runs now", false},
		"RTMR0":         {plain, nil, "RTMR0 was not judged", false},
		"exact RTMR0": {plain, func(c *court) {
			c.demands.Quote.RTMR[0] = [][]byte{bytes.Repeat([]byte{0}, 48), evidenceRTMR0(t, c)}
		}, "ACPI tables are the ones that you expect", true},
		"stale": {plain, func(c *court) {
			c.demands.Quote.CollateralStale, c.demands.Quote.CRLStale = 400*24*time.Hour, 400*24*time.Hour
			c.at = evidencetest.AsOf().AddDate(1, 0, 0)
		}, "tolerated", false},
	} {
		c := newCourt(t)
		own, err := collateral.Parse(c.intel.Collateral(t))
		if err != nil {
			t.Fatal(err)
		}
		c.sources.Collateral = own
		c.demands.Quote = &quote.Policy{
			AllowDebug: true, AllowNoSEPTVEDisable: true, AnyPlatform: true, NoCollateral: true,
		}
		if x.set != nil {
			x.set(c)
		}
		v, reason := c.judge(t, c.intel.Platform(t, true).Quote(t, x.change))
		where, other := v.NotProven, v.Proven
		if x.proven {
			where, other = other, where
		}
		if reason != "" || !strings.Contains(strings.Join(where, "\n"), x.want) ||
			strings.Contains(strings.Join(other, "\n"), x.want) {
			t.Errorf("%s: %q\nproven %q\nnot proven %q\nwant %q", name, reason, v.Proven, v.NotProven, x.want)
		}
	}
}

// evidenceRTMR0 is what test quotes have in RTMR0.
func evidenceRTMR0(t *testing.T, c *court) []byte {
	t.Helper()
	q, err := quote.Parse(c.intel.Platform(t, true).Quote(t))
	if err != nil {
		t.Fatal(err)
	}
	return q.Body.RTMR[0][:]
}
