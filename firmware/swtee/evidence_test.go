package swtee

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/evidence"
	"github.com/vmlatch/vmlatch/firmware/evidence/bundle"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
	"github.com/vmlatch/vmlatch/firmware/swtee/attest"
	"github.com/vmlatch/vmlatch/firmware/tdx/ccel"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
	"github.com/vmlatch/vmlatch/firmware/tdx/quote"
)

// owner judges evidence of an emulated platform as the owner does who has named its roots.
type owner struct {
	sources evidence.Sources
	at      time.Time
}

func newOwner(t testing.TB, p *Platform, terms attest.Terms) *owner {
	t.Helper()
	o := &owner{at: terms.AsOf.Add(time.Minute)}
	text, err := p.AllRootsPEM()
	if err != nil {
		t.Fatal(err)
	}
	roots := bundle.Roots{}
	if roots.AMD, err = kds.ParseRoots(text); err != nil {
		t.Fatal(err)
	}
	if roots.Intel, err = collateral.ParseRoot(text); err != nil {
		t.Fatal(err)
	}
	files, err := p.Collateral(terms)
	if err != nil {
		t.Fatal(err)
	}
	b := bundle.New()
	for _, f := range files {
		found, err := bundle.Recognise(f.Data)
		if err != nil {
			t.Fatalf("%s: %v", f.Name, err)
		}
		for _, part := range found.Parts {
			if part.Kind == bundle.CEK {
				continue
			}
			if _, err := b.AddWithChains(part, found.Chains, roots); err != nil {
				t.Fatalf("%s: %v", f.Name, err)
			}
		}
	}
	o.sources = evidence.Sources{Roots: roots, Bundle: b}
	return o
}

func now() attest.Terms { return attest.Terms{AsOf: time.Now(), Valid: attest.DefaultValid} }

// reason is why the owner refuses evidence, "" for nothing.
func (o *owner) reason(t testing.TB, b []byte, change ...func(*evidence.Demands)) refusal.Reason {
	t.Helper()
	e, err := evidence.Recognise(b)
	if err != nil {
		t.Fatal(err)
	}
	d := &evidence.Demands{
		Report: &report.Policy{AllowSMT: true}, Quote: &quote.Policy{AcceptStatus: []collateral.Status{"UpToDate"}},
	}
	for _, c := range change {
		c(d)
	}
	v := evidence.Judge(e, &o.sources, d, o.at)
	if v.Accepted {
		if !v.Emulated {
			t.Error("the verdict does not say that this is emulated")
		}
		return ""
	}
	return v.Refusal.Reason
}

// launched is an SNP guest that runs.
func launched(t testing.TB, f *Firmware, in SNPFinish) *SNPGuest {
	t.Helper()
	g := f.NewSNPGuest()
	err := errors.Join(g.Init(1), g.LaunchStart(0x30000),
		g.LaunchUpdate(sev.PageNormal, 0x1000, bytes.Repeat([]byte{7}, sev.PageSize)), g.LaunchFinish(in))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func withFaults(t testing.TB, texts ...string) *Firmware {
	t.Helper()
	var faults []Fault
	for _, text := range texts {
		f, err := ParseFault(text)
		if err != nil {
			t.Fatal(err)
		}
		faults = append(faults, f)
	}
	return NewFirmware(platform(t), faults...)
}

func parseReport(t testing.TB, b []byte) *report.Report {
	t.Helper()
	r, err := report.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestReports(t *testing.T) {
	data := sha512.Sum512([]byte("nonce"))
	o := newOwner(t, platform(t), now())
	for _, version := range []uint32{0, 3, 5} {
		f := withFaults(t)
		f.ReportVersion = version
		g := launched(t, f, SNPFinish{HostData: [32]byte{1, 2, 3}})
		b, err := g.Report(data, 2)
		if err != nil {
			t.Fatal(err)
		}
		if why := o.reason(t, b); why != "" {
			t.Errorf("version %d: refused: %s", version, why)
		}
		r := parseReport(t, b)
		var digest sev.SNPDigest
		digest.Extend(sev.PageNormal, 0x1000, sha512.Sum384(bytes.Repeat([]byte{7}, sev.PageSize)))
		if r.Measurement != digest || r.HostData != [32]byte{1, 2, 3} || r.VMPL != 2 || r.ReportData != data ||
			r.Policy != 0x30000 || !bytes.Equal(r.ChipID[:], platform(t).ID()) || r.ReportID == [32]byte{} {
			t.Errorf("version %d: the report says %+v", version, r)
		}
		again, err := g.Report([64]byte{}, 0)
		if err != nil || parseReport(t, again).ReportID != r.ReportID {
			t.Errorf("a second report has another REPORT_ID, %v", err)
		}
		other, err := launched(t, f, SNPFinish{}).Report(data, 0)
		if err != nil || parseReport(t, other).ReportID == r.ReportID {
			t.Errorf("another launch has the same REPORT_ID, %v", err)
		}
	}
}

func TestReportShowsTheIDBlock(t *testing.T) {
	f := withFaults(t)
	digest := sev.SNPDigest(parseReport(t, mustReport(t, launched(t, f, SNPFinish{}))).Measurement)
	id := sev.IDBlock{Digest: digest, FamilyID: [16]byte{1}, ImageID: [16]byte{2}, Version: 1, SVN: 9, Policy: 0x30000}
	key, author := p384(t), p384(t)
	auth, err := sev.SignIDBlock(rand.Reader, id, key, author)
	if err != nil {
		t.Fatal(err)
	}
	block := id.Bytes()
	g := launched(t, f, SNPFinish{IDBlock: block, IDAuth: auth, AuthorKey: true})
	r := parseReport(t, mustReport(t, g))
	want, err1 := sev.KeyDigest(&key.PublicKey)
	wantAuthor, err2 := sev.KeyDigest(&author.PublicKey)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if r.FamilyID != id.FamilyID || r.ImageID != id.ImageID || r.GuestSVN != 9 || r.IDKeyDigest != want ||
		r.AuthorKey != wantAuthor || !r.HasAuthorKey() {
		t.Errorf("the report says %+v", r)
	}
	if why := newOwner(t, platform(t), now()).reason(t, r.Raw[:]); why != "" {
		t.Errorf("refused: %s", why)
	}
}

func mustReport(t testing.TB, g *SNPGuest) []byte {
	t.Helper()
	b, err := g.Report([64]byte{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func p384(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestReportsAreRefused: the platform gives no report, or one that the owner does not accept.
func TestReportsAreRefused(t *testing.T) {
	if _, err := withFaults(t).NewSNPGuest().Report([64]byte{}, 0); Status(err) != sev.StatusInvalidGuestState {
		t.Errorf("before the launch: %v", err)
	}
	f := withFaults(t)
	if _, err := launched(t, f, SNPFinish{}).Report([64]byte{}, VMPLs); !errors.Is(err, ResponseInvalidParam) {
		t.Errorf("VMPL %d: %v", VMPLs, err)
	}
	noVCEK := SNPFinish{VCEKDisabled: true}
	if _, err := launched(t, f, noVCEK).Report([64]byte{}, 0); !errors.Is(err, ResponseInvalidKey) {
		t.Errorf("without any key: %v", err)
	}
	o := newOwner(t, platform(t), now())
	vlek := mustReport(t, launched(t, withFaults(t, "SNP_GUEST_REQUEST=vlek"), noVCEK))
	if why := o.reason(t, vlek, func(d *evidence.Demands) { d.Report.AllowVLEK = true }); why != "" {
		t.Errorf("a provider's key: refused: %s", why)
	}
	for _, c := range []struct {
		fault  string
		change func(*evidence.Demands)
		want   refusal.Reason
	}{
		{"SNP_GUEST_REQUEST=vlek", func(*evidence.Demands) {}, refusal.VLEK},
		{"SNP_GUEST_REQUEST=tcb-behind", func(*evidence.Demands) {}, ""},
		{"SNP_GUEST_REQUEST=tcb-behind", func(d *evidence.Demands) {
			d.Report.MinTCB = map[kds.Line]map[string]uint8{kds.Genoa: {"snp": 20}}
		}, refusal.TCBBelowMinimum},
		{"SNP_GUEST_REQUEST=masked", func(d *evidence.Demands) {
			d.Report.Chips = [][]byte{platform(t).ID()}
		}, refusal.ChipNotAllowed},
	} {
		b := mustReport(t, launched(t, withFaults(t, c.fault), SNPFinish{}))
		if why := o.reason(t, b, c.change); why != c.want {
			t.Errorf("%s: refused: %q, want %q", c.fault, why, c.want)
		}
	}
	for text, want := range map[string]error{
		"SNP_GUEST_REQUEST=EAGAIN": unix.EAGAIN, "SNP_GUEST_REQUEST=INVALID_PARAM": sev.StatusInvalidParam,
		"SNP_GUEST_REQUEST=reset": sev.StatusInvalidGuest,
	} {
		f := withFaults(t, text)
		if _, err := launched(t, f, SNPFinish{}).Report([64]byte{}, 0); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", text, err, want)
		}
	}
	good := mustReport(t, launched(t, f, SNPFinish{}))
	o.sources.Roots = bundle.Genuine()
	if why := o.reason(t, good); why != refusal.EKMissing && why != refusal.Chain {
		t.Errorf("without the test root: %q", why)
	}
}

// domain is a trust domain that runs.
func domain(t testing.TB, f *Firmware) *TD {
	t.Helper()
	d := f.NewTD()
	p := TDParams{
		Attributes: TDAttributes, XFAM: TDXFAM,
		MRConfigID: [48]byte{1}, MROwner: [48]byte{2}, MROwnerConfig: [48]byte{3},
	}
	err := errors.Join(d.InitVM(p), d.InitMemRegion(0x1000, make([]byte, 4096), true), d.Finalize())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func mustQuote(t testing.TB, d *TD) *quote.Quote {
	t.Helper()
	b, err := d.Quote([64]byte{0xda})
	if err != nil {
		t.Fatal(err)
	}
	q, err := quote.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func TestQuotes(t *testing.T) {
	o := newOwner(t, platform(t), now())
	for _, version := range []uint16{0, 4, 5} {
		f := withFaults(t)
		f.QuoteVersion = version
		d := domain(t, f)
		event := sha512.Sum384([]byte("event"))
		d.Measure(1, event)
		if err := d.Extend(3, event); err != nil {
			t.Fatal(err)
		}
		b, err := d.Quote([64]byte{0xda})
		if err != nil {
			t.Fatal(err)
		}
		if why := o.reason(t, b); why != "" {
			t.Errorf("version %d: refused: %s", version, why)
		}
		q := mustQuote(t, d)
		extended := ccel.Extend([48]byte{}, event)
		if want := [4][48]byte{1: extended, 3: extended}; q.Body.RTMR != want {
			t.Errorf("version %d: registers %x", version, q.Body.RTMR)
		}
		if q.Body.MRTD != *d.sum || q.Body.MRConfigID != [48]byte{1} || q.Body.MROwner != [48]byte{2} ||
			q.Body.MROwnerConfig != [48]byte{3} || q.Is15 != (version == 5) || q.Body.Attributes != TDAttributes {
			t.Errorf("version %d: the quote says %+v", version, q.Body)
		}
		if !bytes.Contains(b, []byte(attest.Label)) {
			t.Error("the quote does not bear the label")
		}
	}
}

func TestQuotesAreRefused(t *testing.T) {
	d := withFaults(t).NewTD()
	if _, err := d.Quote([64]byte{}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a quote before the domain is finalized: %v", err)
	}
	if err := d.Extend(3, [48]byte{}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("an extension before the domain is finalized: %v", err)
	}
	for _, register := range []int{-1, 4} {
		if err := domain(t, withFaults(t)).Extend(register, [48]byte{}); !errors.Is(err, unix.EINVAL) {
			t.Errorf("an extension of RTMR%d: %v", register, err)
		}
	}
	none, err := domain(t, withFaults(t, "TDX_GET_QUOTE=no-service")).Quote([64]byte{})
	if err != nil || len(none) != 0 {
		t.Errorf("no quoting service: %d bytes, %v, want an empty quote", len(none), err)
	}
	if _, err := domain(t, withFaults(t, "TDX_GET_QUOTE=EIO")).Quote([64]byte{}); !errors.Is(err, unix.EIO) {
		t.Errorf("a call that fails: %v", err)
	}
	behind, err := domain(t, withFaults(t, "TDX_GET_QUOTE=tcb-behind")).Quote([64]byte{})
	if err != nil {
		t.Fatal(err)
	}
	good, err := domain(t, withFaults(t)).Quote([64]byte{})
	if err != nil {
		t.Fatal(err)
	}
	o := newOwner(t, platform(t), now())
	if why := o.reason(t, behind); why != refusal.TCBStatus {
		t.Errorf("a module that should have been updated: %q", why)
	}
	if why := o.reason(t, good); why != "" {
		t.Errorf("refused: %s", why)
	}
	o.sources.Roots = bundle.Genuine()
	if why := o.reason(t, good); why == "" {
		t.Error("it is accepted without the test root")
	}
}

// TestCollateralExpires as that of the vendors does.
func TestCollateralExpires(t *testing.T) {
	f := withFaults(t)
	rep := mustReport(t, launched(t, f, SNPFinish{}))
	quoted, err := domain(t, f).Quote([64]byte{})
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now().Add(-10 * time.Minute)
	terms := attest.Terms{AsOf: begin, Valid: time.Hour}
	for _, c := range []struct {
		at      time.Duration
		expired bool
	}{{-time.Minute, true}, {time.Minute, false}, {59 * time.Minute, false}, {61 * time.Minute, true}} {
		o := newOwner(t, platform(t), terms)
		o.at = begin.Add(c.at)
		for what, b := range map[string][]byte{"report": rep, "quote": quoted} {
			why := o.reason(t, b)
			if want := map[bool]refusal.Reason{true: refusal.CRLExpired}[c.expired]; why != want {
				t.Errorf("%s, %v after: %q", what, c.at, why)
			}
		}
	}
	terms.Revoked = true
	o := newOwner(t, platform(t), terms)
	for what, b := range map[string][]byte{"report": rep, "quote": quoted} {
		if why := o.reason(t, b); why != refusal.Revoked {
			t.Errorf("%s of a platform that is revoked: %q", what, why)
		}
	}
}

// TestEvidenceKeysAreKept: a platform that is opened again signs with the same keys, which only
// its user can read; a damaged file is named.
func TestEvidenceKeysAreKept(t *testing.T) {
	dir := t.TempDir()
	first, err := OpenPlatform(dir)
	if err != nil {
		t.Fatal(err)
	}
	want, err := first.AllRootsPEM()
	if err != nil {
		t.Fatal(err)
	}
	second, err := OpenPlatform(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := second.AllRootsPEM(); err != nil || !bytes.Equal(got, want) {
		t.Errorf("opened again it has other roots, %v", err)
	}
	for _, name := range []string{attest.FileAMD, attest.FileIntel} {
		file := filepath.Join(dir, name)
		info, err := os.Stat(file)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v, want mode 0600", name, info.Mode(), err)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		mended := strings.ReplaceAll(string(b), `"key": "M`, `"key": "N`)
		for _, bad := range []string{"", "{}", string(b[:len(b)/2]), mended} {
			if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
				t.Fatal(err)
			}
			p, err := OpenPlatform(dir)
			if err != nil {
				t.Fatal(err)
			}
			_, err = p.Collateral(now())
			if !errors.Is(err, ErrPlatform) || DamagedFile(err) != file {
				t.Errorf("%s with %.20q: %v, want an error that names the file", name, bad, err)
			}
		}
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
