package policy

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/nearest"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
	"github.com/vmlatch/vmlatch/firmware/tdx/attr"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
	"github.com/vmlatch/vmlatch/firmware/tdx/quote"
	"github.com/vmlatch/vmlatch/firmware/tdx/rtmr"
)

// Lacks reports whether a policy says nothing of a technology, so that its guests are refused.
func (f *File) Lacks(technology string) bool {
	return technology == "sev-snp" && f.SNP == nil || technology == "tdx" && f.TDX == nil ||
		technology == "vtpm" && f.VTPM == nil
}

const acceptACPI = "accept"

// acpi refuses a policy that does not say what it leaves to the host.
func (f *File) acpi(table, value string) error {
	if value == acceptACPI {
		return nil
	}
	return f.errorf(table+".host-acpi", `must be %q: the host's ACPI code runs in the guest's kernel, and no`+
		` measurement covers it; use a kernel that contains it`, acceptACPI)
}

func (f *File) checkSNP() error {
	if f.SNP == nil {
		return nil
	}
	_, err := f.Report()
	return err
}

// Report is what an SEV-SNP report must be, but for the measurement and the report data.
func (f *File) Report() (*report.Policy, error) {
	t := f.SNP
	if t == nil {
		return nil, f.errorf("sev-snp", "this policy has no such table: such guests get nothing")
	}
	if t.Digests == nil && f.Guest == nil {
		return nil, f.errorf("sev-snp.digests", "is missing, and there is no [guest] to work them out from")
	}
	if t.Digests != nil && f.Guest != nil && f.TDX == nil && f.SEV == nil && f.SEVES == nil {
		return nil, f.errorf("sev-snp.digests", "would take the place of what [guest] gives: leave one of them out")
	}
	if t.Digests != nil && len(t.Digests) == 0 {
		return nil, f.errorf("sev-snp.digests", "is empty: no guest would be accepted")
	}
	if err := f.acpi("sev-snp", t.HostACPI); err != nil {
		return nil, err
	}
	p := &report.Policy{
		VMPL: t.VMPL, AllowProvisional: t.Provisional, AllowVLEK: t.VLEK, AllowDebug: t.Debug,
		RequireAliasCheck: t.AliasCheck == nil || *t.AliasCheck, RequireCRL: t.CRL == nil || *t.CRL,
		MinGuestSVN: t.MinGuestSVN, LaunchMit: t.LaunchMit, CurrentMit: t.CurrentMit,
	}
	if p.VMPL == nil {
		p.VMPL = new(uint32)
	}
	if *p.VMPL > 3 {
		return nil, f.errorf("sev-snp.vmpl", "%d: must be 0 to 3", *p.VMPL)
	}
	var err error
	if p.Chips, p.AnyChip, err = f.chips("sev-snp", t.Chips, kds.Milan.HWIDSize(), kds.Turin.HWIDSize()); err != nil {
		return nil, err
	}
	p.CRLStale, _ = days(f.Tolerate.CRLStale)
	if p.Measurements, err = f.unhexAll("sev-snp.digests", t.Digests, 48); err != nil {
		return nil, err
	}
	if err := f.unhexEach("sev-snp", []hexField{
		{"host-data", t.HostData, 32, &p.HostData},
		{"id-key", t.IDKey, 48, &p.IDKeyDigest},
		{"author-key", t.AuthorKey, 48, &p.AuthorKey},
		{"family-id", t.FamilyID, 16, &p.FamilyID},
		{"image-id", t.ImageID, 16, &p.ImageID},
	}); err != nil {
		return nil, err
	}
	if err := f.guestPolicy(p); err != nil {
		return nil, err
	}
	return p, f.leastFirmware(p)
}

// guestPolicy reads the words that bound the guest's own policy.
func (f *File) guestPolicy(p *report.Policy) error {
	words := strings.Join(f.SNP.Policy, ",")
	bound := sev.SNPPolicyReserved
	if words != "" {
		var err error
		if bound, err = sev.ParseSNPPolicy(words); err != nil {
			return f.errorf("sev-snp.policy", "%v", err)
		}
	}
	if bound&sev.SNPPolicyDebug != 0 {
		return f.errorf("sev-snp.policy", "debug has a key of its own: debug = true")
	}
	if f.SNP.Debug {
		bound |= sev.SNPPolicyDebug
	}
	p.Guest = &bound
	p.AllowSMT, p.AllowMigrationAgent = bound&sev.SNPPolicySMT != 0, bound&sev.SNPPolicyMigrate != 0
	return nil
}

func (f *File) leastFirmware(p *report.Policy) error {
	if v := f.SNP.MinFirmware; v != "" {
		major, minor, ok := sev.ParseVersion(v)
		if !ok {
			return f.errorf("sev-snp.min-firmware", "%q: must be MAJOR.MINOR, such as 1.55", v)
		}
		if major == 0 && minor == 0 {
			return f.errorf(
				"sev-snp.min-firmware",
				"%q: demands nothing: leave it out, or say which version is needed",
				v,
			)
		}
		p.MinFirmware = &sev.Build{Major: major, Minor: minor}
	}
	var components []string
	for _, c := range kds.Components() {
		components = append(components, c.Name)
	}
	for name, least := range f.SNP.MinTCB {
		line, ok := kds.ParseLine(name)
		if !ok {
			return f.errorf(
				"sev-snp.min-tcb",
				"%v",
				nearest.Unknown("line", name, []string{"milan", "genoa", "turin"}),
			)
		}
		for c := range least {
			if c == "fmc" && line != kds.Turin {
				return f.errorf("sev-snp.min-tcb."+name, "fmc: only Turin has one")
			}
			if !slices.Contains(components, c) {
				return f.errorf("sev-snp.min-tcb."+name, "%v", nearest.Unknown("component", c, components))
			}
		}
		if p.MinTCB == nil {
			p.MinTCB = map[kds.Line]map[string]uint8{}
		}
		if !slices.ContainsFunc(slices.Collect(maps.Values(least)), func(n uint8) bool { return n > 0 }) {
			return f.errorf(
				"sev-snp.min-tcb."+name,
				"demands nothing: leave it out, or say which versions are needed",
			)
		}
		p.MinTCB[line] = least
	}
	return nil
}

func (f *File) checkTDX() error {
	if f.TDX == nil {
		return nil
	}
	_, err := f.Quote()
	return err
}

// RTMR0 is how the register of the host's hardware is judged.
type RTMR0 struct {
	Exact   []byte // 48 bytes
	Profile string // a file of digests with holes
	Zero    bool   // emulated platforms measure none
}

// Forms of rtmr0.
const (
	rtmr0Exact   = "exact:"
	rtmr0Profile = "profile:"
	rtmr0Zero    = "emulated-zero"
)

// RTMR0 reads how it is judged.
func (f *File) RTMR0() (*RTMR0, error) {
	v := f.TDX.RTMR0
	if x, ok := strings.CutPrefix(v, rtmr0Exact); ok {
		b, err := f.unhex("tdx.rtmr0", x, 48)
		if err == nil && b == nil {
			err = f.errorf("tdx.rtmr0", "the digest is missing")
		}
		return &RTMR0{Exact: b}, err
	}
	if x, ok := strings.CutPrefix(v, rtmr0Profile); ok && exchange.IsName(x) {
		return &RTMR0{Profile: x}, nil
	}
	if v == rtmr0Zero && f.Emulated != nil {
		return &RTMR0{Zero: true}, nil
	}
	return nil, f.errorf(
		"tdx.rtmr0",
		`%q: must be "exact:HEX", or "profile:NAME" (latchkey policy rtmr0 makes one of`+
			` a boot's event log): it holds the firmware's settings, boot order and keys, which the host can change`,
		v,
	)
}

// Quote is what a trust domain's quote must be, but for MRTD, RTMRs and report data.
func (f *File) Quote() (*quote.Policy, error) {
	t := f.TDX
	if t == nil {
		return nil, f.errorf("tdx", "this policy has no such table: such guests get nothing")
	}
	p := &quote.Policy{
		AllowDebug: t.Debug, AllowServiceTD: t.ServiceTD, RejectAdvisories: t.Advisories,
		MinEvaluation: t.MinEvaluation,
	}
	for _, check := range []func(*quote.Policy) error{f.tdxMeasured, f.tdxPlatform, f.tdxWords} {
		if err := check(p); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// tdxMeasured reads what was measured.
func (f *File) tdxMeasured(p *quote.Policy) error {
	t := f.TDX
	for _, m := range []struct {
		key  string
		list []string
		to   *[][]byte
		from bool // [guest] gives it
	}{
		{"mrtd", t.MRTD, &p.MRTD, f.Guest != nil},
		{"rtmr1", t.RTMR1, &p.RTMR[1], f.Guest != nil && f.Guest.Kernel != ""},
		{"rtmr2", t.RTMR2, &p.RTMR[2], f.Guest != nil && f.Guest.Kernel != ""},
	} {
		if m.list == nil && !m.from {
			return f.errorf("tdx."+m.key, "is missing, and [guest] does not give it")
		}
		if m.list != nil && len(m.list) == 0 {
			return f.errorf("tdx."+m.key, "is empty: no guest would be accepted")
		}
		var err error
		if *m.to, err = f.unhexAll("tdx."+m.key, m.list, 48); err != nil {
			return err
		}
	}
	if _, err := f.profile(); err != nil {
		return f.errorf("tdx.firmware-profile", "%v", err)
	}
	r, err := f.RTMR0()
	if err != nil {
		return err
	}
	if r.Exact != nil {
		p.RTMR[0] = [][]byte{r.Exact}
		return nil
	}
	return f.acpi("tdx", t.HostACPI)
}

// profile is how the guest's firmware measures what it boots.
func (f *File) profile() (rtmr.Profile, error) {
	return rtmr.ProfileNamed(cmp.Or(f.TDX.Profile, rtmr.Profiles()[0].Name))
}

// tdxPlatform reads which platforms are accepted, and in what state.
func (f *File) tdxPlatform(p *quote.Policy) (err error) {
	t := f.TDX
	if p.Platforms, p.AnyPlatform, err = f.chips("tdx", t.Chips, 16, 32); err != nil {
		return err
	}
	if p.FMSPC, err = f.unhexAll("tdx.fmspc", t.FMSPC, 6); err != nil {
		return err
	}
	if t.FMSPC != nil && len(t.FMSPC) == 0 {
		return f.errorf("tdx.fmspc", "is empty: no platform would be accepted")
	}
	p.CRLStale, _ = days(f.Tolerate.CRLStale)
	p.CollateralStale, _ = days(f.Tolerate.CollateralStale)
	var known []string
	for _, s := range collateral.Statuses() {
		known = append(known, string(s))
	}
	if t.AcceptTCB != nil && len(t.AcceptTCB) == 0 {
		return f.errorf("tdx.accept-tcb", "is empty: no platform would be accepted")
	}
	for _, s := range t.AcceptTCB {
		if !slices.Contains(known, s) {
			return f.errorf("tdx.accept-tcb", "%v", nearest.Unknown("state", s, known))
		}
		p.AcceptStatus = append(p.AcceptStatus, collateral.Status(s))
	}
	for _, a := range t.Advisories {
		n, ok := strings.CutPrefix(a, "INTEL-SA-")
		if !ok || len(n) != 5 || strings.Trim(n, "0123456789") != "" {
			return f.errorf("tdx.reject-advisories", "%q: must be an advisory such as INTEL-SA-01192", a)
		}
	}
	return nil
}

func (f *File) tdxWords(p *quote.Policy) error {
	t := f.TDX
	var names []string
	bits := map[string]attr.Attributes{}
	for _, n := range attr.All() {
		if n.Bit != attr.Debug && n.Bit != attr.SEPTVEDisable {
			names, bits[n.Name] = append(names, n.Name), n.Bit
		}
	}
	slices.Sort(names)
	for _, a := range t.Attributes {
		if !slices.Contains(names, a) {
			return f.errorf("tdx.attributes", "%v", nearest.Unknown("attribute", a, names))
		}
		p.AllowAttributes |= bits[a]
	}
	return f.unhexEach("tdx", []hexField{
		{"mrconfigid", t.MRConfigID, 48, &p.MRConfigID},
		{"mrowner", t.MROwner, 48, &p.MROwner},
		{"mrownerconfig", t.MROwnerConfig, 48, &p.MROwnerConfig},
		{"mrseam", t.MRSEAM, 48, &p.MRSEAM},
		{"xfam", t.XFAM, 8, &p.XFAM},
	})
}

func (f *File) checkSEV() error {
	for name, t := range map[string]*SEV{"sev": f.SEV, "sev-es": f.SEVES} {
		if t == nil {
			continue
		}
		if f.Guest == nil {
			return f.errorf(name, "there is no [guest] to work the digest out from")
		}
		if _, _, err := f.chips(name, t.Chips, 32); err != nil {
			return err
		}
		if _, _, ok := sev.ParseVersion(t.MinAPI); t.MinAPI != "" && !ok {
			return f.errorf(name+".min-api", "%q: must be MAJOR.MINOR, such as 1.55", t.MinAPI)
		}
	}
	return nil
}
