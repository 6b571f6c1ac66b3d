package main

import (
	"errors"
	"fmt"
	"slices"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher"
	"github.com/vmlatch/vmlatch/launcher/check"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

func newCheck(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name:      "check",
		Usage:     "check this host, or a VM on it, before it is started",
		ArgsUsage: "[FILE]",
		Category:  catHost,
		Description: `With FILE: every check of the VM, on this host, that a start would make. Without:
which technologies this host can run, and what is missing for the others.

A check that fails either refuses the VM or warns. Exit code 0: nothing refuses
it. 2: the spec does. 3: this host does. What this user cannot read is "unknown"
and refuses nothing.

Examples:

   vmlatch check
   vmlatch check examples/snp/guest.toml
   vmlatch check --emulate --json examples/sev/guest.toml`,
		Flags: hostFlags(
			jsonFlag(),
			emulateFlag(),
			&urfave.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "also checks that do not apply to this VM"},
			&urfave.StringFlag{
				Name:  "root",
				Usage: "look at the host whose record is in `DIR` (vmlatch host --record)",
			},
			&urfave.StringFlag{Name: "name", Usage: "call the VM `NAME` instead of what the spec says"},
		),
		Action: func(c *urfave.Context) error {
			if c.NArg() == 0 {
				if c.Bool("emulate") || c.IsSet("name") || c.Bool("all") {
					return cli.Usagef("--emulate, --name and --all need a FILE")
				}
				return checkHost(c, s)
			}
			args, err := cli.Args(c, "FILE")
			if err != nil {
				return err
			}
			return checkFile(c, s, args[0])
		},
	}
}

// checkReport is the JSON of check (vmlatch.check/1). Of a VM that is refused before
// there is a plan only the name of the file is known.
type checkReport struct {
	Schema     string          `json:"schema"`
	File       string          `json:"file"`
	Name       string          `json:"name,omitempty"`
	Technology string          `json:"technology,omitempty"`
	Emulated   bool            `json:"emulated"`
	Choices    []rundir.Choice `json:"choices,omitempty"`
	Refused    bool            `json:"refused"`
	Checks     []check.Result  `json:"checks"`
}

func checkFile(c *urfave.Context, s *cli.IO, file string) error {
	_, h, err := ownVMs(c, s.Say) // as a start would
	if err != nil {
		return err
	}
	config := launcher.Config{Host: h, Emulate: c.Bool("emulate"), Record: host.Root(c.String("root"))}
	results, p, err := launcher.CheckFile(c.Context, file, c.String("name"), config)
	if err != nil {
		return err
	}
	rep := checkReport{Schema: "vmlatch.check/1", File: file, Emulated: c.Bool("emulate"), Checks: []check.Result{}}
	if p != nil {
		rep.Name, rep.Technology, rep.Choices = p.Name, p.Technology, p.Choices
	}
	for _, r := range results {
		if r.Verdict != tee.NotApplicable || c.Bool("all") {
			rep.Checks = append(rep.Checks, r)
		}
	}
	if p == nil {
		results = results[:1] // what a start would say; it comes no further
	}
	refusal := fault.As(check.Error(file, results))
	rep.Refused = refusal != nil
	if c.Bool("json") {
		err = s.JSON(rep)
	} else {
		err = printChecks(s, rep)
	}
	if err == nil && rep.Refused {
		err = &cli.Error{Code: exitCode(refusal.Kind), Err: refusal, Quiet: true}
	}
	return err
}

// printChecks shows what failed first, each with its fix.
func printChecks(s *cli.IO, rep checkReport) error {
	rank := func(r check.Result) int {
		switch {
		case r.Refuses():
			return 0
		case r.Verdict == tee.Failed:
			return 1
		case r.Verdict == tee.Unknown:
			return 2
		}
		return 3
	}
	for _, ch := range rep.Choices {
		switch ch.What {
		case "technology":
			fmt.Fprintf(s.Out, "# %s: %s, %s%s\n", ch.What, cli.Escape(ch.Value), cli.Escape(ch.From),
				label(rep.Emulated))
		case "qemu":
			fmt.Fprintf(s.Out, "# %s: %s, %s\n", ch.What, cli.Escape(ch.Value), cli.Escape(ch.From))
		}
	}
	slices.SortStableFunc(rep.Checks, func(a, b check.Result) int { return rank(a) - rank(b) })
	counts, refused := map[tee.Verdict]int{}, 0
	t := s.Table(2)
	for _, r := range rep.Checks {
		word := string(r.Verdict)
		if r.Verdict == tee.Failed {
			word = map[bool]string{true: "REFUSED", false: "warning"}[r.Refuses()]
		}
		counts[r.Verdict]++
		if r.Refuses() {
			refused++
		}
		detail := r.Detail
		if r.Verdict == tee.Failed && detail == "" {
			detail = r.Cause
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", word, r.ID, cli.Escape(detail))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range rep.Checks {
		if r.Verdict == tee.Failed {
			fmt.Fprintf(s.Out, "\n%s: %s\n  fix: %s\n  source: %s\n", r.ID, cli.Escape(r.Cause), cli.Escape(r.Fix),
				r.Source)
		}
	}
	fmt.Fprintf(s.Out, "\n%d ok, %d refused, %s, %d unknown", counts[tee.OK], refused,
		cli.Count(counts[tee.Failed]-refused, "warning"),
		counts[tee.Unknown])
	if n := counts[tee.NotApplicable]; n > 0 {
		fmt.Fprintf(s.Out, ", %d not applicable", n)
	}
	fmt.Fprintln(s.Out)
	return nil
}

// checkHost says which technologies work, and what keeps the others from it.
func checkHost(c *urfave.Context, s *cli.IO) error {
	if _, err := hostConfig(c); err != nil {
		return err
	}
	rep, err := detect(c.String("root"))
	if err != nil {
		return err
	}
	usable := false
	for _, t := range rep.Technologies {
		usable = usable || t.Usable == host.Yes
	}
	if c.Bool("json") {
		err = s.JSON(
			map[string]any{
				"schema":       "vmlatch.check-host/1",
				"kvm":          rep.KVM,
				"technologies": rep.Technologies,
				"usable":       usable,
			},
		)
	} else {
		err = printTechnologies(s, rep)
	}
	if err == nil && !usable {
		s.Say("no confidential guest can run here; plain VMs can%s", map[bool]string{
			false: ", slowly: without KVM QEMU translates their code (TCG)",
		}[rep.KVM.Usable == host.Yes])
		err = &cli.Error{Code: cli.ExitHost, Err: errors.New("no technology"), Quiet: true}
	}
	return err
}

func printTechnologies(s *cli.IO, rep *host.Report) error {
	t := s.Table(2)
	for _, row := range append([]host.Technology{rep.KVM}, rep.Technologies...) {
		fmt.Fprintf(t, "%s\t%s\t%s\n", row.Name, row.Usable, cli.Escape(row.Why))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	said := map[string]bool{}
	for _, row := range append([]host.Technology{rep.KVM}, rep.Technologies...) {
		if row.Usable != host.Yes && row.Fix != "" && !said[row.Fix] {
			said[row.Fix] = true
			fmt.Fprintf(s.Out, "\n%s: %s\n", row.Name, cli.Escape(row.Fix))
		}
	}
	return nil
}
