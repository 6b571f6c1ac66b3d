package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/evidence"
	"github.com/vmlatch/vmlatch/firmware/evidence/bundle"
	"github.com/vmlatch/vmlatch/firmware/regular"
)

func newBundle(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "bundle", Usage: "keep the certificates, lists and collateral that evidence is judged by",
		ArgsUsage: "[urls | add | fetch | check] [FILE…]",
		Description: `A bundle is one file. Each of its parts is signed by AMD or Intel, so it may come from
anywhere; it is verified before it is kept, and again when it is used.

"urls" prints what to fetch for a report, a quote or a platform file, for a machine
that has a network. "add BUNDLE FILE…" keeps parts, which are recognised by content:
certificates (VCEK, VLEK, CEK) and revocation lists in DER, PEM or hex, answers of
Intel's service with their headers (curl -i), collateral, and other bundles. "fetch
BUNDLE" does both: it is the only command that uses a network. "check BUNDLE" tells
what is in it, and until when each part is valid.

Exit code 0: all is well. 4: a part does not verify, or (check) has expired or
is not valid yet. 1: (fetch) a part could not be had.

Examples:

   latchkey bundle urls --report report.bin
   latchkey bundle add bundle.json vcek.der crl.der
   latchkey bundle fetch bundle.json --quote quote.bin
   latchkey bundle check bundle.json --as-of 2027-01-01`,
		BashComplete: actions(bundleActions...),
		Flags: []urfave.Flag{
			&urfave.StringFlag{Name: "report", Usage: "urls, fetch: what this SEV-SNP report `FILE` needs"},
			&urfave.StringFlag{Name: "quote", Usage: "urls, fetch: what this TDX quote `FILE` needs"},
			&urfave.StringFlag{
				Name:  "platform",
				Usage: "urls, fetch: what this platform `FILE` needs (vmlatch platform)",
			},
			&urfave.StringFlag{
				Name:  "product",
				Usage: "urls, fetch: the processor is of this `LINE` (milan, genoa, turin); for reports of version 2",
			},
			&urfave.BoolFlag{
				Name:  "early",
				Usage: "urls, fetch: Intel's next TCB evaluation, which may call more platforms out of date",
			},
			&urfave.DurationFlag{
				Name:  "timeout",
				Value: 2 * time.Minute,
				Usage: "fetch: give up after this `DURATION`",
			},
			asOfFlag(),
			&urfave.StringFlag{Name: "trust-root", Usage: "also keep parts under the test roots in `FILE`"},
			&urfave.BoolFlag{Name: "json", Usage: "print JSON"},
		},
		Action: func(c *urfave.Context) error {
			if err := noEmptyOption(c); err != nil {
				return err
			}
			switch action := c.Args().First(); action {
			case "urls":
				if _, err := cli.Args(c, "urls"); err != nil {
					return err
				}
				return printURLs(c, s)
			case "add":
				return addToBundle(c, s)
			case "fetch":
				return fetchBundle(c, s)
			case "check":
				return checkBundle(c, s)
			case "":
				_, err := cli.Args(c, strings.Join(bundleActions, " | "))
				return err
			default:
				return cli.Choice("", "action", action, bundleActions)
			}
		},
	}
}

var bundleActions = []string{"urls", "add", "fetch", "check"}

// readLimited reads a file or a pipe of at most so many bytes.
func readLimited(file string, limit int64) ([]byte, error) { return regular.ReadInput(file, limit) }

// readBundle reads a bundle; nil for no name.
func readBundle(file string) (*bundle.Bundle, error) {
	if file == "" {
		return nil, nil
	}
	b, err := readLimited(file, bundle.MaxSize)
	if err != nil {
		return nil, cli.Fail(cli.ExitUsage, err)
	}
	return parseBundle(file, b)
}

func parseBundle(file string, b []byte) (*bundle.Bundle, error) {
	x, err := bundle.Parse(b)
	if err != nil {
		return nil, cli.Fail(cli.ExitUsage, fmt.Errorf("%s: %w", file, err), `"latchkey bundle add" makes one`)
	}
	return x, nil
}

func recogniseFile(file string) (*bundle.Found, error) {
	b, err := readLimited(file, bundle.MaxSize)
	if err != nil {
		return nil, err
	}
	f, err := bundle.Recognise(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return f, nil
}

// partReport is a part in "bundle check".
type partReport struct {
	*bundle.Info
	Emulated bool   `json:"emulated,omitempty"`
	State    string `json:"state"` // valid, expires-soon, expired, not-yet, unverified
	Error    string `json:"error,omitempty"`
}

// soon is how long before its end a part is called to expire soon.
const soon = 7 * 24 * time.Hour

func checkBundle(c *urfave.Context, s *cli.IO) error {
	args, err := cli.Args(c, "check", "BUNDLE")
	if err != nil {
		return err
	}
	at, err := asOf(c)
	if err != nil {
		return err
	}
	b, err := readBundle(args[1])
	if err != nil {
		return err
	}
	roots, err := bundleRoots(c)
	if err != nil {
		return err
	}
	list, bad, expired := []partReport{}, 0, false
	for i := range b.Parts {
		p := inspectPart(&b.Parts[i], roots, at)
		expired = expired || p.State == "expired"
		if p.State == "expired" || p.State == "not-yet" || p.State == "unverified" {
			bad++
		}
		list = append(list, p)
	}
	slices.SortStableFunc(list, func(a, b partReport) int { return a.Until.Compare(b.Until) })
	if c.Bool("json") {
		err = s.JSON(map[string]any{"schema": "latchkey.bundle-check/1", "as-of": at.UTC(), "parts": list})
	} else {
		err = printParts(s, list)
	}
	if len(list) == 0 {
		s.Say("%s: it has no parts", args[1])
	}
	var hint []string
	if expired {
		hint = append(hint, "newer ones: latchkey bundle fetch "+args[1])
	}
	if err == nil && bad > 0 {
		err = cli.Fail(cli.ExitRefused, fmt.Errorf("%s: %d of %d parts cannot be used", args[1], bad, len(list)),
			hint...)
	}
	return err
}

func inspectPart(p *bundle.Part, roots []bundle.Roots, at time.Time) partReport {
	var first error
	for _, r := range roots {
		info, err := p.Inspect(r)
		if err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		out := partReport{Info: info, Emulated: !r.Vendor, State: "valid"}
		switch {
		case info.Until.IsZero(): // a certificate of SEV's has no dates
		case at.Before(info.From):
			out.State = "not-yet"
		case at.After(info.Until):
			out.State = "expired"
		case at.Add(soon).After(info.Until):
			out.State = "expires-soon"
		}
		return out
	}
	return partReport{
		Info: &bundle.Info{
			Kind:  p.Kind,
			About: fmt.Sprintf("%d bytes", len(p.Data)),
		}, State: "unverified", Error: first.Error(),
	}
}

func printParts(s *cli.IO, list []partReport) error {
	t := s.Table(2)
	fmt.Fprintln(t, "PART\tSTATE\tUNTIL\tABOUT")
	for _, p := range list {
		until, state := "-", p.State
		if !p.Until.IsZero() {
			until = p.Until.UTC().Format(time.DateOnly)
		}
		if p.Emulated {
			state += " (emulated)"
		}
		about := p.About
		if p.Error != "" {
			about = p.Error
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", p.Kind, state, until, cli.Escape(about))
	}
	return t.Flush()
}

// evidenceOf reads the evidence that --report or --quote names.
func evidenceOf(s *cli.IO, file string) (*evidence.Evidence, error) {
	b, err := s.ReadInput(file, evidence.MaxSize)
	if err != nil {
		return nil, cli.Fail(cli.ExitUsage, err)
	}
	e, err := evidence.Recognise(b)
	if err != nil {
		return nil, refused(fmt.Errorf("%s: %w", file, err))
	}
	return e, nil
}
