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

// field is a line of what evidence says.
type field struct{ name, value string }

// fields are kept in order, also as JSON.
type fields []field

func (f *fields) add(name, format string, args ...any) {
	*f = append(*f, field{name, fmt.Sprintf(format, args...)})
}

// hex adds bytes; zeros are said in a word.
func (f *fields) hex(name string, b []byte) {
	if strings.Trim(string(b), "\x00") == "" {
		f.add(name, "zero")
		return
	}
	f.add(name, "%x", b)
}

// showEvidence shows what a file says, and judges nothing.
func showEvidence(c *urfave.Context, s *cli.IO, e *evidence.Evidence) error {
	var f fields
	if e.Wrapping != "" {
		f.add("found", "%s", e.Wrapping)
	}
	schema := "latchkey.report/1"
	if e.Report != nil {
		f.report(e)
	} else {
		schema = "latchkey.quote/1"
		f.quote(e.Quote)
	}
	if c.Bool("json") {
		out := map[string]string{"schema": schema}
		for _, x := range f {
			out[x.name] = x.value
		}
		return s.JSON(out)
	}
	s.Say("nothing here was verified: such a file proves nothing until it is (latchkey %s verify)",
		map[bool]string{true: "report", false: "quote"}[e.Report != nil])
	t := s.Table(2)
	for _, x := range f {
		fmt.Fprintf(t, "%s\t%s\n", x.name, cli.Escape(x.value))
	}
	return t.Flush()
}

func (f *fields) report(e *evidence.Evidence) {
	r := e.Report
	line, known := r.Line()
	f.add("version", "%d", r.Version)
	switch {
	case known:
		f.add("processor", "%s (family %#x, model %#x, stepping %d)", line, r.Family, r.Model, r.Stepping)
	case r.Version < 3:
		f.add("processor", "not named in this version; its certificate names it")
	default:
		f.add("processor", "unknown (family %#x, model %#x)", r.Family, r.Model)
	}
	f.hex("measurement", r.Measurement[:])
	f.add("policy", "%s", r.Policy)
	f.add(
		"vmpl",
		"%s",
		map[bool]string{true: "asked for by the host", false: fmt.Sprint(r.VMPL)}[r.VMPL == report.VMPLHost],
	)
	f.hex("report-data", r.ReportData[:])
	f.hex("host-data", r.HostData[:])
	f.add("guest-svn", "%d", r.GuestSVN)
	f.hex("id-key-digest", r.IDKeyDigest[:])
	f.hex("author-key-digest", r.AuthorKey[:])
	f.hex("family-id", r.FamilyID[:])
	f.hex("image-id", r.ImageID[:])
	f.hex("report-id", r.ReportID[:])
	f.hex("report-id-ma", r.ReportIDMA[:])
	if r.Masked() {
		f.add("chip-id", "masked")
	} else {
		f.hex("chip-id", r.ChipID[:])
	}
	f.add("signing-key", "%s", r.Signer())
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
			f.add(t.name, "%s", kds.ParseTCB(t.raw, line).Text(line))
		} else {
			f.add(t.name, "%#016x", t.raw)
		}
	}
	f.add("firmware", "%s", r.Current)
	f.add("firmware-committed", "%s", r.Committed)
	f.add("platform", "%s", strings.Join(r.Platform.Words(), ","))
	if r.Version >= 5 {
		f.add("launch-mitigations", "%#x", r.LaunchMit)
		f.add("current-mitigations", "%#x", r.CurrentMit)
	}
	if e.Table != nil {
		f.add("certificates", "%d came with it", len(e.Table))
	}
}

func (f *fields) quote(q *quote.Quote) {
	b := &q.Body
	f.add("version", "%d, TDX %s", q.Version, map[bool]string{true: "1.5", false: "1.0"}[q.Is15])
	f.add("tee-tcb-svn", "%s", hex.EncodeToString(b.TEETCBSVN[:]))
	f.hex("mrtd", b.MRTD[:])
	for i := range b.RTMR {
		f.hex(fmt.Sprintf("rtmr%d", i), b.RTMR[i][:])
	}
	f.hex("report-data", b.ReportData[:])
	f.add("attributes", "%s", strings.Join(b.Attributes.Words(), ","))
	f.add("xfam", "%x", b.XFAM)
	f.hex("mrconfigid", b.MRConfigID[:])
	f.hex("mrowner", b.MROwner[:])
	f.hex("mrownerconfig", b.MROwnerConfig[:])
	f.hex("mrseam", b.MRSEAM[:])
	f.hex("mrsignerseam", b.MRSignerSEAM[:])
	f.hex("seamattributes", b.SEAMAttributes[:])
	if q.Is15 {
		f.add("tee-tcb-svn-2", "%x", b.TEETCBSVN2)
		f.hex("mrservicetd", b.MRServiceTD[:])
	}
	f.hex("user-data", q.UserData[:])
	if p, err := q.Claimed(); err == nil {
		f.add("fmspc", "%x", p.FMSPC)
		f.add("platform", "%x (SHA-256 of its PPID)", p.IDs()[0])
	}
}
