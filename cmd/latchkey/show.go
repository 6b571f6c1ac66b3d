package main

import (
	"encoding/hex"
	"fmt"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/evidence"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
	"github.com/vmlatch/vmlatch/firmware/tdx/quote"
)

// field is something that evidence says, for people and for programs.
type field struct {
	name, text string
	value      any
}

type fields []field

// add adds a value and its text.
func (f *fields) add(name string, value any, format string, args ...any) {
	*f = append(*f, field{name, fmt.Sprintf(format, args...), value})
}

func (f *fields) number(name string, n uint32) { f.add(name, n, "%d", n) }

func (f *fields) words(name string, list []string) {
	f.add(name, append([]string{}, list...), "%s", strings.Join(list, ","))
}

// hex adds bytes; for people zeros are said in a word.
func (f *fields) hex(name string, b []byte) {
	text := hex.EncodeToString(b)
	if strings.Trim(text, "0") == "" {
		f.add(name, text, "zero")
		return
	}
	f.add(name, text, "%s", text)
}

// showEvidence shows what a file says, and judges nothing.
func showEvidence(c *urfave.Context, s *cli.IO, e *evidence.Evidence) error {
	var f fields
	if e.Wrapping != "" {
		f.add("found", e.Wrapping, "%s", e.Wrapping)
	}
	schema := "latchkey.report/1"
	if e.Report != nil {
		f.report(e)
	} else {
		schema = "latchkey.quote/1"
		f.quote(e.Quote)
	}
	if c.Bool("json") {
		out := map[string]any{"schema": schema}
		for _, x := range f {
			out[x.name] = x.value
		}
		return s.JSON(out)
	}
	s.Say("nothing here was verified: such a file proves nothing until it is (latchkey %s verify)",
		map[bool]string{true: "report", false: "quote"}[e.Report != nil])
	t := s.Table(2)
	for _, x := range f {
		fmt.Fprintf(t, "%s\t%s\n", x.name, cli.Escape(x.text))
	}
	return t.Flush()
}

func (f *fields) report(e *evidence.Evidence) {
	r := e.Report
	line, known := r.Line()
	f.number("version", r.Version)
	processor := map[string]any{}
	if r.Version >= 3 {
		processor["family"], processor["model"], processor["stepping"] = r.Family, r.Model, r.Stepping
	}
	switch {
	case known:
		processor["line"] = line
		f.add("processor", processor, "%s (family %#x, model %#x, stepping %d)", line, r.Family, r.Model, r.Stepping)
	case r.Version < 3:
		f.add("processor", processor, "not named in this version; its certificate names it")
	default:
		f.add("processor", processor, "unknown (family %#x, model %#x)", r.Family, r.Model)
	}
	f.hex("measurement", r.Measurement[:])
	f.add("policy", fmt.Sprintf("%#x", uint64(r.Policy)), "%s", r.Policy)
	if r.VMPL == report.VMPLHost {
		f.add("vmpl", "host", "asked for by the host")
	} else {
		f.number("vmpl", r.VMPL)
	}
	f.hex("report-data", r.ReportData[:])
	f.hex("host-data", r.HostData[:])
	f.number("guest-svn", r.GuestSVN)
	f.hex("id-key-digest", r.IDKeyDigest[:])
	f.hex("author-key-digest", r.AuthorKey[:])
	f.hex("family-id", r.FamilyID[:])
	f.hex("image-id", r.ImageID[:])
	f.hex("report-id", r.ReportID[:])
	f.hex("report-id-ma", r.ReportIDMA[:])
	if r.Masked() {
		f.add("chip-id", nil, "masked")
	} else {
		f.hex("chip-id", r.ChipID[:])
	}
	f.add("signing-key", strings.ToLower(r.Signer().String()), "%s", r.Signer())
	for _, t := range []struct {
		name string
		raw  uint64
	}{
		{"reported-tcb", r.ReportedTCB},
		{"current-tcb", r.CurrentTCB},
		{"committed-tcb", r.CommittedTCB},
		{"launch-tcb", r.LaunchTCB},
	} {
		if known {
			tcb := kds.ParseTCB(t.raw, line)
			f.add(t.name, tcb, "%s", tcb.Text(line))
		} else {
			f.add(t.name, fmt.Sprintf("%#016x", t.raw), "%#016x", t.raw)
		}
	}
	f.add("firmware", fmt.Sprint(r.Current), "%s", r.Current)
	f.add("firmware-committed", fmt.Sprint(r.Committed), "%s", r.Committed)
	f.words("platform", r.Platform.Words())
	if r.Version >= 5 {
		f.add("launch-mitigations", fmt.Sprintf("%#x", r.LaunchMit), "%#x", r.LaunchMit)
		f.add("current-mitigations", fmt.Sprintf("%#x", r.CurrentMit), "%#x", r.CurrentMit)
	}
	if e.Table != nil {
		f.add("certificates", len(e.Table), "%d came with it", len(e.Table))
	}
}

func (f *fields) quote(q *quote.Quote) {
	b := &q.Body
	generation := map[bool]string{true: "1.5", false: "1.0"}[q.Is15]
	f.add("version", q.Version, "%d", q.Version)
	f.add("tdx", generation, "%s", generation)
	f.add("tee-tcb-svn", hex.EncodeToString(b.TEETCBSVN[:]), "%x", b.TEETCBSVN)
	f.hex("mrtd", b.MRTD[:])
	for i := range b.RTMR {
		f.hex(fmt.Sprintf("rtmr%d", i), b.RTMR[i][:])
	}
	f.hex("report-data", b.ReportData[:])
	f.words("attributes", b.Attributes.Words())
	f.add("xfam", fmt.Sprintf("%x", b.XFAM), "%x", b.XFAM)
	f.hex("mrconfigid", b.MRConfigID[:])
	f.hex("mrowner", b.MROwner[:])
	f.hex("mrownerconfig", b.MROwnerConfig[:])
	f.hex("mrseam", b.MRSEAM[:])
	f.hex("mrsignerseam", b.MRSignerSEAM[:])
	f.hex("seamattributes", b.SEAMAttributes[:])
	if q.Is15 {
		f.add("tee-tcb-svn-2", hex.EncodeToString(b.TEETCBSVN2[:]), "%x", b.TEETCBSVN2)
		f.hex("mrservicetd", b.MRServiceTD[:])
	}
	f.hex("user-data", q.UserData[:])
	if p, err := q.Claimed(); err == nil {
		f.hex("fmspc", p.FMSPC)
		f.add("platform", fmt.Sprintf("%x", p.IDs()[0]), "%x (SHA-256 of its PPID)", p.IDs()[0])
	}
}
