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
		Usage:        "remove the logs of VMs that have ended, and on request their TPMs",
		ArgsUsage:    "NAME… | --all",
		Category:     catRun,
		BashComplete: completeEnded,
		Description: `Remove the logs and the last record of VMs that have ended. Specs, disks and whatever
else is yours stay. So does a persistent TPM, and with it the logs: --tpm removes its keys
and counters first. What was sealed to it, such as the key of a disk, is lost then.

Examples:

   vmlatch rm guest
   vmlatch rm --tpm guest
   vmlatch rm --all`,
		Flags: hostFlags(ignoreFlag(),
			&urfave.BoolFlag{Name: "all", Usage: "remove those of every VM that has ended"},
			&urfave.BoolFlag{Name: "tpm", Usage: "also remove its TPM: what was sealed to it is lost"}, jobsFlag(),
			jsonFlag()),
		Action: func(c *urfave.Context) error {
			ended := func(e *rundir.Entry) bool { return e.Status() == rundir.Ended }
			return onEach(c, s, ended, func(ctx context.Context, s *cli.IO, root rundir.Root, t *task) error {
				had := false
				if c.Bool("tpm") {
					err := root.ForgetTPM(ctx, t.Name)
					if had = err == nil; !had && !errors.Is(err, rundir.ErrNotFound) {
						return err
					}
				}
				err := root.Forget(ctx, t.Name)
				if errors.Is(err, rundir.ErrTPM) {
					return cli.Fail(cli.ExitUsage, err, "rm --tpm removes it too; what was sealed to it is lost then")
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
