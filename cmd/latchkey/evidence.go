package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/evidence"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
)

const verifyHelp = `
"verify" judges without a network, by a policy file (latchkey policy) and a bundle of the
vendor's certificates and lists (latchkey bundle), at the present time or at --as-of. It
prints what is proven and what is not. "show" judges nothing.

Exit code 0: accepted. 4: refused; the reason is said, and what helps.
`

func newReport(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "report", Usage: "show or verify an SEV-SNP guest's attestation report",
		ArgsUsage: "[show | verify] FILE",
		Description: `A guest gets its report from its kernel: /sys/kernel/config/tsm/report, or
/dev/sev-guest. FILE may hold a certificate table behind it, be a report by Azure's
paravisor, or be written in hex or base64; - is standard input.
` + verifyHelp + `
Examples:

   latchkey report show report.bin
   latchkey report verify report.bin --policy appliance.toml --bundle bundle.json \
      --report-data $(cat nonce.hex)
   latchkey report verify report.bin --genuine --ek vcek.der`,
		BashComplete: actions("show", "verify"),
		Flags: verifyFlags(
			&urfave.StringFlag{
				Name:  "ek",
				Usage: "endorsement certificate (VCEK or VLEK) `FILE`, instead of the bundle's",
			},
			&urfave.StringFlag{Name: "crl", Usage: "AMD's revocation list `FILE`, instead of the bundle's"},
		),
		Action: func(c *urfave.Context) error { return runEvidence(c, s, evidence.SNP) },
	}
}

func newQuote(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "quote", Usage: "show or verify a TDX guest's quote",
		ArgsUsage: "[show | verify] FILE",
		Description: `A guest gets its quote from its kernel: /sys/kernel/config/tsm/report. FILE may be
written in hex or base64; - is standard input.
` + verifyHelp + `
Examples:

   latchkey quote show quote.bin
   latchkey quote verify quote.bin --policy appliance.toml --bundle bundle.json \
      --event-log CCEL --report-data $(cat nonce.hex)
   latchkey quote verify quote.bin --genuine --collateral collateral.json`,
		BashComplete: actions("show", "verify"),
		Flags: verifyFlags(
			&urfave.StringFlag{Name: "collateral", Usage: "Intel's collateral `FILE`, instead of the bundle's"},
			&urfave.StringFlag{
				Name:  "event-log",
				Usage: "the guest's event log `FILE` (/sys/firmware/acpi/tables/data/CCEL)",
			},
		),
		Action: func(c *urfave.Context) error { return runEvidence(c, s, evidence.TDX) },
	}
}

func verifyFlags(more ...urfave.Flag) []urfave.Flag {
	return append([]urfave.Flag{
		&urfave.StringFlag{Name: "policy", Usage: "your policy `FILE`: what the guest and its platform must be"},
		&urfave.BoolFlag{Name: "genuine", Usage: "without a policy: judge only whether it is genuine"},
		&urfave.StringFlag{Name: "bundle", Usage: "certificates and lists `FILE` (latchkey bundle)"},
		&urfave.StringFlag{Name: "report-data", Usage: "the 64 bytes that the guest was asked to show, in `HEX`"},
		asOfFlag(),
		&urfave.StringFlag{Name: "trust-root", Usage: "also trust the test roots in `FILE`: for emulated platforms"},
		&urfave.BoolFlag{Name: "json", Usage: "print JSON"},
		&urfave.BoolFlag{Name: "schema", Usage: "print the JSON Schema of verify --json"},
	}, more...)
}

func asOfFlag() urfave.Flag {
	return cli.TimeFlag("as-of", "judge at this `TIME` (2026-11-27, or RFC 3339), not now")
}

// asOf is the time of judgement.
func asOf(c *urfave.Context) (time.Time, error) { return cli.TimeOf(c, "as-of") }

// actions completes the first argument of a command that does several things.
func actions(names ...string) func(*urfave.Context) {
	return func(c *urfave.Context) { fmt.Fprintln(c.App.Writer, strings.Join(names, "\n")) }
}

// actionArgs are an action and a FILE, and no option without a value: it may be a variable that
// was not set, and would demand nothing.
func actionArgs(c *urfave.Context, names ...string) ([]string, error) {
	if err := noEmptyOption(c); err != nil {
		return nil, err
	}
	if first := c.Args().First(); first != "" && !slices.Contains(names, first) {
		if c.NArg() == 1 {
			return nil, cli.Usagef("say what to do with %s: %s", first, strings.Join(names, " or "))
		}
		return nil, cli.Choice("", "action", first, names)
	}
	args, err := cli.Args(c, strings.Join(names, " | "), "FILE")
	if err == nil && args[1] == "" {
		err = cli.Usagef("FILE is empty")
	}
	return args, err
}

func noEmptyOption(c *urfave.Context, but ...string) error {
	for _, f := range c.Command.Flags {
		s, ok := f.(*urfave.StringFlag)
		if ok && c.IsSet(s.Name) && strings.TrimSpace(c.String(s.Name)) == "" && !slices.Contains(but, s.Name) {
			return cli.Usagef("--%s: is empty", s.Name)
		}
	}
	return nil
}

func runEvidence(c *urfave.Context, s *cli.IO, technology string) error {
	if c.Bool("schema") {
		_, err := fmt.Fprint(s.Out, verdictSchema)
		return err
	}
	args, err := actionArgs(c, "show", "verify")
	if err != nil {
		return err
	}
	b, err := s.ReadInput(args[1], evidence.MaxSize)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	e, err := evidence.Recognise(b)
	if r := refusal.Of(err); r != nil && args[0] == "verify" {
		at, wrong := asOf(c)
		if wrong != nil {
			return wrong
		}
		return conclude(c, s, args[1], evidence.Refused(technology, at, r))
	}
	if err != nil { // to show it, or to say what it is, is not a judgement
		return cli.Fail(cli.ExitUsage, fmt.Errorf("%s: %w", args[1], err), hintOf(err)...)
	}
	if e.Technology != technology {
		other := map[string]string{evidence.SNP: "report", evidence.TDX: "quote"}[e.Technology]
		return cli.Fail(cli.ExitUsage, fmt.Errorf("%s: it is the %s of a guest of %s", args[1], other, e.Technology),
			fmt.Sprintf("latchkey %s %s %s", other, args[0], args[1]))
	}
	if args[0] == "show" {
		for _, f := range c.Command.Flags {
			if name := f.Names()[0]; name != "json" && name != "help" && c.IsSet(name) {
				return cli.Usagef("--%s is for verify: show judges nothing", name)
			}
		}
		return showEvidence(c, s, e)
	}
	j, err := newJudgement(c, technology)
	if err != nil {
		return err
	}
	return conclude(c, s, args[1], j.judge(e))
}

// hintOf is what helps against a refusal.
func hintOf(err error) []string {
	if r := refusal.Of(err); r != nil {
		return []string{r.Fix}
	}
	return nil
}

// conclude prints a verdict, and fails for one that refuses.
func conclude(c *urfave.Context, s *cli.IO, file string, v *evidence.Verdict) (err error) {
	if v.Emulated && v.Accepted {
		s.Say("warning: emulated: the chain ends in a test root, and protects nothing")
	}
	if c.Bool("json") {
		err = s.JSON(v)
	} else {
		err = printVerdict(s, file, v)
	}
	if err == nil && !v.Accepted {
		fail := &cli.Error{
			Code:  cli.ExitRefused,
			Err:   fmt.Errorf("%s: refused: %w", file, v.Refusal),
			Quiet: c.Bool("json"),
		}
		fail.Hints = append(v.Explained, v.Refusal.Fix)
		if st := v.State; st != nil && st.Status != collateral.UpToDate {
			fail.Hints = append(
				fail.Hints,
				fmt.Sprintf("the platform is %s, its TDX module %s, its quoting enclave %s; open: %s",
					st.Platform, st.Module, st.QE, cmp.Or(strings.Join(st.Advisories, ", "), "no advisory")),
			)
		}
		return fail
	}
	return err
}

// refused gives refusals of evidence's form their exit code and hint.
func refused(err error) error {
	if errors.Is(err, evidence.ErrUnknown) {
		return cli.Fail(cli.ExitUsage, err)
	}
	return adviseRefusal(err)
}

func printVerdict(s *cli.IO, file string, v *evidence.Verdict) error {
	var b strings.Builder
	if v.Accepted {
		word := "accepted by policy " + v.Policy
		if v.Policy == "" {
			word = "genuine; nothing else was demanded"
		}
		if v.Emulated {
			word = "EMULATED, " + word
		}
		fmt.Fprintf(&b, "%s: %s\n", cli.Escape(file), word)
		list := func(title string, lines []string) {
			if len(lines) > 0 {
				fmt.Fprintf(&b, "\n%s\n", title)
			}
			for _, l := range lines {
				fmt.Fprintf(&b, "  - %s\n", cli.Escape(l))
			}
		}
		list("Proven:", v.Proven)
		list("Not proven:", v.NotProven)
		fmt.Fprintf(&b, "\nJudged as of %s", v.AsOf.Format(time.RFC3339))
		if v.Until != nil {
			fmt.Fprintf(&b, "; what it was judged by is valid until %s", v.Until.UTC().Format(time.RFC3339))
		}
		b.WriteString("\n")
	}
	_, err := fmt.Fprint(s.Out, b.String())
	return err
}
