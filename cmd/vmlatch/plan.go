package main

import (
	"fmt"
	"text/tabwriter"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher"
)

func newPlan(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "plan", Usage: "show what a start would execute, and why", ArgsUsage: "FILE", Category: catHost,
		Description: `Nothing is started or created.

Examples:

   vmlatch plan examples/plain/guest.toml
   vmlatch plan --emulate --json examples/sev/guest.toml`,
		Flags: hostFlags(jsonFlag(), emulateFlag(),
			&urfave.StringFlag{Name: "name", Usage: "call the VM `NAME` instead of what the spec says"}),
		Action: func(c *urfave.Context) error {
			args, err := cli.Args(c, "FILE")
			if err != nil {
				return err
			}
			h, err := hostConfig(c)
			if err != nil {
				return err
			}
			_, plan, err := loadPlan(c, h, args[0])
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return s.JSON(plan)
			}
			return printPlan(s, plan)
		},
	}
}

func printPlan(s *cli.IO, p *launcher.Plan) error {
	fmt.Fprintf(s.Out, "# %s: technology %s%s, latch opens with: %s\n", p.Name, p.Technology, label(p.Emulated), p.Latch)
	fmt.Fprintln(s.Out, p.CommandLine())
	t := tabwriter.NewWriter(s.Out, 0, 0, 2, ' ', 0)
	section := func(title string) { fmt.Fprintf(t, "\n# %s\n", title) }
	section("where the values came from")
	for _, c := range p.Choices {
		fmt.Fprintf(t, "%s\t%s\t%s\n", c.What, c.Value, c.From)
	}
	section("descriptors that QEMU inherits")
	for _, f := range p.FDs {
		fmt.Fprintf(t, "fd %d\t%s\t%s\n", f.Number, f.Role, f.Meaning)
	}
	section("files")
	for _, f := range p.Files {
		measured := "not measured"
		if f.Measured {
			measured = "measured"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", f.Use, f.Path, measured)
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
