package main

import (
	"context"
	"errors"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

func newRm(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name:         "rm",
		Usage:        "remove the logs of VMs that have ended, and on request their TPMs and variables",
		ArgsUsage:    "NAME… | --all",
		Category:     catRun,
		BashComplete: completeEnded,
		Description: `Remove the logs and the last record of VMs that have ended. Specs, disks and whatever
else is yours stay. So does a persistent TPM, and with it the logs: --tpm removes its keys
and counters first. What was sealed to it, such as the key of a disk, is lost then. Variables
of firmware with Secure Boot stay too, until --vars removes them.

Examples:

   vmlatch rm guest
   vmlatch rm --tpm --vars guest
   vmlatch rm --all`,
		Flags: hostFlags(ignoreFlag(),
			&urfave.BoolFlag{Name: "all", Usage: "remove those of every VM that has ended"},
			&urfave.BoolFlag{Name: "tpm", Usage: "also remove its TPM: what was sealed to it is lost"},
			&urfave.BoolFlag{Name: "vars", Usage: "also remove its firmware's variables, of Secure Boot"},
			jobsFlag(), jsonFlag()),
		Action: func(c *urfave.Context) error {
			ended := func(e *rundir.Entry) bool { return e.Status() == rundir.Ended }
			return onEach(c, s, ended, func(ctx context.Context, s *cli.IO, root rundir.Root, t *task) error {
				had := false
				for flag, forget := range map[string]func(context.Context, string) error{
					"tpm": root.ForgetTPM, "vars": root.ForgetVars,
				} {
					if !c.Bool(flag) {
						continue
					}
					err := forget(ctx, t.Name)
					if err != nil && !errors.Is(err, rundir.ErrNotFound) {
						return err
					}
					had = had || err == nil
				}
				err := root.Forget(ctx, t.Name)
				if errors.Is(err, rundir.ErrTPM) {
					return cli.Fail(cli.ExitUsage, err, "rm --tpm removes it too; what was sealed to it is lost then")
				}
				if errors.Is(err, rundir.ErrVars) {
					return cli.Fail(cli.ExitUsage, err, "rm --vars removes them too; new ones are made then")
				}
				if had && errors.Is(err, rundir.ErrNotFound) {
					err = nil // it had no logs
				}
				if c.Bool("ignore") && errors.Is(err, rundir.ErrNotFound) {
					err = nil
				}
				if err != nil {
					return err
				}
				t.Result = "removed"
				s.Say("%s: removed", t.Name)
				return nil
			})
		},
	}
}
