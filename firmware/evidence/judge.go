package evidence

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence/bundle"
	"github.com/vmlatch/vmlatch/firmware/evidence/policy"
	"github.com/vmlatch/vmlatch/firmware/pki"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
	"github.com/vmlatch/vmlatch/firmware/tdx/attr"
	"github.com/vmlatch/vmlatch/firmware/tdx/ccel"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
	"github.com/vmlatch/vmlatch/firmware/tdx/quote"
	"github.com/vmlatch/vmlatch/firmware/tdx/rtmr"
)

// Sources are what evidence is judged by. Any of them may come from the host: what counts is
// signed by the vendor.
type Sources struct {
	Roots      bundle.Roots
	Bundle     *bundle.Bundle // nil for none
	EK         []byte         // certificate in DER, before those of the bundle
	CRL        []byte         // of AMD, in DER
	Collateral *collateral.Collateral
	Log        []byte // the CC event log; nil for none
}

// Demands are the owner's. Report, Quote or TPM is needed for evidence of its technology.
type Demands struct {
	Report   *report.Policy
	Quote    *quote.Policy
	TPM      *policy.Registers
	Hardware *rtmr.Hardware // RTMR0 measurement by measurement; nil for not demanded
	Name     string         // of the policy; "" if nothing else than genuineness is demanded
}

// VerdictSchema names the format of verdicts.
const VerdictSchema = "latchkey.verdict/1"

// Verdict is what was found.
type Verdict struct {
	Schema     string         `json:"schema"`
	Accepted   bool           `json:"accepted"`
	Technology string         `json:"technology"`
	Emulated   bool           `json:"emulated"`
	Trust      string         `json:"trust,omitempty"`  // "host": the host could have made the evidence up
	Policy     string         `json:"policy,omitempty"` // its name; "" if only genuineness was asked
	AsOf       time.Time      `json:"as-of"`
	Root       string         `json:"root,omitempty"` // in which the chain of signatures ends
	Refusal    *refusal.Error `json:"refusal,omitempty"`
	// Proven and NotProven are for people. Of refused evidence nothing is proven.
	Proven    []string   `json:"proven"`
	NotProven []string   `json:"not-proven"`
	Until     *time.Time `json:"until,omitempty"` // when the first thing expires by which it was judged

	// What follows is said of genuine evidence alone, also if it is refused.
	Genuine    bool              `json:"genuine"`
	Chip       string            `json:"chip,omitempty"`
	State      *collateral.State `json:"state,omitempty"`
	Relaunch   bool              `json:"relaunch-advised,omitempty"`
	Stale      []string          `json:"stale,omitempty"`     // what was used after its date, as tolerated
	Explained  []string          `json:"explained,omitempty"` // what differs, where the log tells
	LogMatches bool              `json:"event-log-matches,omitempty"`

	log    *ccel.Log
	booted []byte
	open   bool // of a TPM: nothing has closed the launch
}

// Open reports, of an accepted quote of a TPM, whether the launch has not been closed yet (PCR 15).
func (v *Verdict) Open() bool { return v.open }

// Booted is the digest of the registers of a TPM that count.
func (v *Verdict) Booted() []byte { return v.booted }

// Log is the event log, if one was given and leads to the quote's registers.
func (v *Verdict) Log() *ccel.Log { return v.log }

// Refused is the verdict on what cannot be judged for a reason that was found before.
func Refused(technology string, asOf time.Time, r *refusal.Error) *Verdict {
	return &Verdict{
		Schema: VerdictSchema, Technology: technology, AsOf: asOf.UTC(), Refusal: r,
		Proven: []string{}, NotProven: []string{},
	}
}

// Judge judges evidence at a time. The verdict is never nil.
func Judge(e *Evidence, s *Sources, d *Demands, asOf time.Time) *Verdict {
	v := &Verdict{
		Schema: VerdictSchema, Technology: e.Technology, AsOf: asOf.UTC(), Emulated: !s.Roots.Vendor, Policy: d.Name,
		Proven: []string{}, NotProven: []string{},
	}
	var err error
	switch e.Technology {
	case SNP:
		err = v.judgeReport(e, s, d, asOf)
	case VTPM:
		err = v.judgeTPM(e, d)
	default:
		err = v.judgeQuote(e, s, d, asOf)
	}
	if err != nil {
		v.Proven = []string{}
		if v.Refusal = refusal.Of(err); v.Refusal == nil {
			v.Refusal = &refusal.Error{Reason: "internal", Text: err.Error()}
		}
		return v
	}
	v.Accepted = true
	if v.Emulated {
		for i, p := range v.Proven {
			v.Proven[i] = "(emulated) " + p
		}
		v.NotProven = append(
			[]string{"anything about protection: the chain ends in a test root, so this is emulated"},
			v.NotProven...)
	}
	return v
}

func (v *Verdict) judgeReport(e *Evidence, s *Sources, d *Demands, asOf time.Time) error {
	if d.Report == nil {
		return refusal.New(refusal.NoPolicy)
	}
	r := e.Report
	if err := r.Form(); err != nil {
		return err
	}
	ek, err := endorsement(e, s)
	if err != nil {
		return err
	}
	j := &report.Evidence{Report: r, EK: ek, Roots: s.Roots.AMD}
	if j.CRLs, err = lists(ek, s); err != nil {
		return err
	}
	if err := j.Genuine(asOf, d.Report); err != nil {
		return err
	}
	v.Genuine, v.Root = true, "ARK-"+string(ek.Line)
	if ek.Signer == kds.VCEK && !r.Masked() {
		v.Chip = hex.EncodeToString(ek.HWID)
	}
	until := s.Roots.AMD.Expires(ek)
	if x := j.CRLUntil(); !x.IsZero() && x.Before(until) {
		until = x
	}
	v.Until = &until
	if len(j.CRLs) > 0 {
		v.stale("the list of authorities that AMD has revoked", j.CRLUntil(), asOf)
	}
	if err := d.Report.Check(r, ek); err != nil {
		return err
	}
	v.reportWords(j, d)
	return nil
}

// stale notes what is used after its date.
func (v *Verdict) stale(what string, until, asOf time.Time) {
	if asOf.After(until) {
		v.Stale = append(v.Stale, what+" is of before "+pki.Date(until))
	}
}

// endorsement finds the certificate of the report's key: the one that is given, or one of the
// bundle, or one that came with the report.
func endorsement(e *Evidence, s *Sources) (*kds.Certificate, error) {
	if s.EK != nil {
		return kds.ParseCertificate(s.EK)
	}
	if s.Bundle != nil {
		if c := s.Bundle.Endorsement(e.Report, s.Roots); c != nil {
			return c, nil
		}
	}
	var first error
	for _, der := range report.Endorsements(e.Table) {
		c, err := kds.ParseCertificate(der)
		if err == nil && e.Report.MayBeBy(c) {
			return c, nil
		}
		first = cmp.Or(first, err)
	}
	if first != nil {
		return nil, first
	}
	why := refusal.New(refusal.EKMissing)
	if l, ok := e.Report.Line(); ok && !e.Report.Masked() && e.Report.Signer() == kds.VCEK {
		why.Fix = "AMD has it: " + kds.VCEKURL(l, e.Report.ChipID[:], kds.ParseTCB(e.Report.ReportedTCB, l)) +
			"; latchkey bundle add keeps it"
	}
	return nil, why
}

func lists(c *kds.Certificate, s *Sources) ([]*kds.CRL, error) {
	if s.CRL != nil {
		crl, err := kds.ParseCRL(s.CRL)
		return []*kds.CRL{crl}, err
	}
	if s.Bundle != nil {
		return s.Bundle.CRLs(c.Line, s.Roots), nil
	}
	return nil, nil
}

func (v *Verdict) judgeQuote(e *Evidence, s *Sources, d *Demands, asOf time.Time) error {
	if d.Quote == nil {
		return refusal.New(refusal.NoPolicy)
	}
	j := &quote.Evidence{Quote: e.Quote, Root: s.Roots.Intel, Collateral: s.Collateral}
	if j.Collateral == nil && s.Bundle != nil {
		if pck, err := e.Quote.Claimed(); err == nil {
			j.Collateral = s.Bundle.Collateral(pck, asOf, s.Roots)
		}
	}
	found, err := j.Genuine(asOf, d.Quote)
	if err != nil {
		return err
	}
	v.Genuine, v.Root, v.Until = true, j.Root.X509.Subject.CommonName, &found.Until
	v.State, v.Relaunch, v.Chip = found.State, found.Relaunch, hex.EncodeToString(found.PCK.IDs()[0])
	if found.State != nil {
		v.stale("Intel's collateral", found.Until, asOf)
	}
	// The log explains a register that differs, so it is read before the demands are made.
	var logErr error
	if s.Log != nil {
		if v.log, logErr = ccel.Parse(s.Log); logErr == nil {
			if logErr = v.log.Match(e.Quote.Body.RTMR); logErr != nil {
				v.log = nil
			}
		}
	}
	if err := cmp.Or(d.Quote.Check(e.Quote, found), logErr); err != nil {
		return err
	}
	v.LogMatches = v.log != nil
	if d.Hardware != nil {
		if v.log == nil {
			return refusal.New(refusal.EventLogMissing)
		}
		if err := d.Hardware.Match(v.log); err != nil {
			return err
		}
	}
	v.quoteWords(e.Quote, found, d)
	return nil
}

// say adds a sentence to what is proven, or to what is not.
func (v *Verdict) say(proven bool, yes, no string) {
	switch {
	case proven && yes != "":
		v.Proven = append(v.Proven, yes)
	case !proven && no != "":
		v.NotProven = append(v.NotProven, no)
	}
}

func (v *Verdict) reportWords(j *report.Evidence, d *Demands) {
	r, c, p := j.Report, j.EK, d.Report
	key := fmt.Sprintf("the %s of a %s processor", c.Signer, c.Line)
	v.say(
		true,
		fmt.Sprintf("the report was signed by %s, with firmware %s (%s)", key, r.Current, c.TCB.Text(c.Line)),
		"",
	)
	v.say(p.Measurements != nil, "exactly your guest was launched: its digest is one that you expect",
		"what was launched: the digest was not compared")
	v.say(p.MinTCB != nil, "", "that the platform's firmware is not outdated: no minimum was demanded")
	v.say(p.Chips != nil, "the chip is one of yours", "which chip it is: any is accepted")
	v.say(p.ReportData != nil, "the guest made it for this purpose: the report data are what you expect",
		"that it is fresh: the report data were not compared, so it may be an old one, or another's")
	v.say(len(j.CRLs) > 0 && v.Stale == nil, "AMD has not revoked the authority above the key", "")
	v.say(len(j.CRLs) > 0, "", "that AMD has not revoked the key's authority: there is no list")
	v.sayStale("that AMD has not revoked the key's authority since")
	if c.Signer == kds.VLEK {
		v.say(false, "", "which machine it is: a VLEK is in the provider's hands")
	}
	v.say(!r.Policy.Debuggable(), "the host cannot read or write the guest's memory through the debug interface",
		"that the host cannot read the guest's memory: debugging is allowed")
	v.say(r.Policy&sev.SNPPolicyMigrate == 0, "",
		"that it stays where it was launched: a migration agent of the host's may move it")
	if r.VMPL > 0 {
		v.say(false, "", fmt.Sprintf("what runs above the guest: the report is of VMPL %d", r.VMPL))
	}
	v.say(
		r.Provisional(c.Line) == nil,
		"",
		"that the firmware stays as new as it is: the host may roll it back (COMMITTED_TCB)",
	)
	v.say(false, "", "the host's ACPI code, which runs in the guest's kernel: no measurement covers it")
	v.common()
}

func (v *Verdict) quoteWords(q *quote.Quote, found *quote.Verdict, d *Demands) {
	p := d.Quote
	v.say(true, fmt.Sprintf("the quote is of a genuine platform of family %x", found.PCK.FMSPC), "")
	if s := found.State; s != nil {
		v.say(v.Stale == nil, fmt.Sprintf("Intel calls its state %s, by evaluation %d", s.Status, s.Evaluation), "")
		v.sayStale("the platform's state, and that it was not revoked since")
		for _, a := range s.Advisories {
			v.say(false, "", "that "+a+" is closed on this platform")
		}
	} else {
		v.say(false, "", "the platform's state, and that it was not revoked: there is no collateral")
	}
	v.say(q.Body.Attributes&attr.SEPTVEDisable != 0, "",
		"that the host cannot inject exceptions by taking pages away: SEPT_VE_DISABLE is off")
	v.say(q.Body.Attributes&attr.Migratable == 0 && q.Body.MRServiceTD == [48]byte{}, "",
		"that it stays where it was launched: a service TD may move it")
	v.say(
		q.Body.Attributes&attr.Debug == 0,
		"the host cannot read or write the domain's memory through debugging",
		"that the host cannot read the guest's memory: debugging is on",
	)
	v.say(
		p.MRTD != nil,
		"exactly your firmware was launched (MRTD)",
		"which firmware was launched: MRTD was not compared",
	)
	v.say(p.RTMR[1] != nil && p.RTMR[2] != nil, "it booted your kernel, command line and initrd (RTMR1, RTMR2)",
		"what was booted: RTMR1 and RTMR2 were not compared")
	v.say(p.FMSPC != nil, "its family is one that you allow", "")
	v.say(p.Platforms != nil, "the platform is one of yours", "which platform it is: any is accepted")
	v.say(p.ReportData != nil, "the guest made it for this purpose: the report data are what you expect",
		"that it is fresh: the report data were not compared, so it may be an old one, or another's")
	switch {
	case q.Body.RTMR[0] == [48]byte{}: // only emulated platforms may have that
		v.say(
			false,
			"",
			"firmware settings, boot order, keys and the host's ACPI code: RTMR0 is zero, so that nothing"+
				" was measured into it",
		)
		v.say(false, "", "that it booted what RTMR1 and RTMR2 name: an emulator measured what it served")
	case p.RTMR[0] != nil:
		v.say(true, "firmware settings, boot order and ACPI tables are the ones that you expect (RTMR0)", "")
	case d.Hardware != nil:
		v.say(true, "firmware settings and boot order are those of your profile (RTMR0)", "")
		v.say(false, "", "the host's ACPI code, which runs in the guest's kernel: the profile leaves it open")
	default:
		v.say(false, "", "firmware settings, boot order, keys and the host's ACPI code: RTMR0 was not judged")
	}
	v.say(v.LogMatches, "the event log is that of the quote: it leads to its registers", "")
	v.say(q.Body.RTMR[3] == [48]byte{}, "", "what the guest has measured since it booted (RTMR3 is not zero)")
	v.common()
}

// sayStale says what is not known because something was used after its date.
func (v *Verdict) sayStale(what string) {
	for _, s := range v.Stale {
		v.say(false, "", what+": "+s+", which is tolerated")
	}
}

// common is what no evidence proves.
func (v *Verdict) common() {
	v.say(
		false,
		"",
		"what runs now: it names what was launched, and whoever runs code in the guest can ask for evidence",
	)
	v.say(false, "", "what is on disks, and who is at the other end of networks")
}
