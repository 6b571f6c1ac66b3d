package main

import (
	"fmt"
	"io"
	"strconv"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

func newPlan(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name:      "plan",
		Usage:     "show what a start would execute, and why",
		ArgsUsage: "FILE",
		Category:  catHost,
		Description: `Nothing is started or created; but for --tables, by which QEMU is started for a moment,
apart from the VM, to read the ACPI and SMBIOS tables that it passes to firmware:
"latchkey pcrs --tables" predicts PCR 1 from them. Nothing of the guest runs.

Examples:

   vmlatch plan examples/plain/guest.toml
   vmlatch plan --emulate --json examples/sev/guest.toml
   vmlatch plan --tables tables.json guest.toml`,
		Flags: hostFlags(jsonFlag(), emulateFlag(), explainChoiceFlag(),
			&urfave.StringFlag{Name: "tables", Usage: "write QEMU's ACPI and SMBIOS tables to `FILE` (PCR 1)"},
			&urfave.StringFlag{Name: "name", Usage: "call the VM `NAME` instead of what the spec says"}),
		Action: func(c *urfave.Context) error {
			args, err := cli.Args(c, "FILE")
			if err != nil {
				return err
			}
			_, h, err := ownVMs(c, s.Say) // as a start would
			if err != nil {
				return err
			}
			if to := c.String("tables"); to != "" {
				return writeTables(c, s, h, args[0], to)
			}
			p, err := loadPlan(c, h, args[0])
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return s.JSON(p)
			}
			if c.Bool("explain-choice") {
				return printChoices(s, p.Choices)
			}
			return printPlan(s, p)
		},
	}
}

func printPlan(s *cli.IO, p *launcher.Plan) error {
	fmt.Fprintf(s.Out, "# %s: technology %s%s, latch opens with: %s\n", p.Name, p.Technology, label(p.Emulated),
		p.Latch)
	fmt.Fprintln(s.Out, p.CommandLine())
	t := s.Table(2)
	section := func(title string) { fmt.Fprintf(t, "\n# %s\n", title) }
	section("where the values came from")
	writeChoices(t, p.Choices)
	section("descriptors that QEMU inherits")
	if p.Slot != nil {
		size := "of " + count(p.Slot.Size)
		if p.Slot.Size < 0 {
			size = "without a limit"
		}
		fmt.Fprintf(t, "slot\t%s\t%s (%s)\n", p.Slot.Pool, size, p.Slot.From)
	}
	for _, f := range p.FDs {
		fmt.Fprintf(t, "fd %d\t%s\t%s\n", f.Number, f.Role, f.Meaning)
	}
	for _, h := range p.Helpers {
		section("helper " + h.Role + ": " + h.Meaning)
		if err := t.Flush(); err != nil {
			return err
		}
		fmt.Fprintln(s.Out, h.CommandLine())
		for _, f := range h.FDs {
			fmt.Fprintf(t, "fd %d\t%s\t%s\n", f.Number, f.Role, f.Meaning)
		}
		if h.Confinement != nil {
			section("what helper " + h.Role + " is confined to")
			writeBox(t, h.Confinement)
		}
	}
	section("files")
	for _, f := range p.Files {
		measured := "not measured"
		if f.Measured {
			measured = "measured"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", f.Use, f.Path, measured)
	}
	for _, c := range p.Copies {
		fmt.Fprintf(t, "%s\t%s\tmade from %s\n", c.Use, c.To, c.From)
	}
	section("what QEMU is confined to")
	if p.Confinement == nil {
		fmt.Fprintf(t, "no\t%s\n", p.Unconfined)
	} else {
		writeBox(t, p.Confinement)
	}
	section("what the launch measurement covers")
	for _, c := range p.Covers.Covered {
		fmt.Fprintf(t, "yes\t%s\n", c)
	}
	for _, c := range p.Covers.NotCovered {
		fmt.Fprintf(t, "no\t%s\n", c)
	}
	return t.Flush()
}

func explainChoiceFlag() urfave.Flag {
	return &urfave.BoolFlag{
		Name:  "explain-choice",
		Usage: "say why this technology, firmware, CPU model and QEMU were chosen",
	}
}

// printChoices says where each value of a launch came from.
func printChoices(s *cli.IO, choices []rundir.Choice) error {
	t := s.Table(2)
	writeChoices(t, choices)
	return t.Flush()
}

func writeChoices(t io.Writer, choices []rundir.Choice) {
	for _, c := range choices {
		fmt.Fprintf(t, "%s\t%s\t%s\n", c.What, cli.Escape(c.Value), cli.Escape(c.From))
	}
}

// count writes a number that may be unknown.
func count(n int) string {
	if n < 0 {
		return "unknown"
	}
	return strconv.Itoa(n)
}
