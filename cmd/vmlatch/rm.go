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
		Usage:        "remove the logs of VMs that have ended",
		ArgsUsage:    "NAME… | --all",
		Category:     catRun,
		BashComplete: completeEnded,
		Description: `Remove the logs and the last record of VMs that have ended. Specs, disks and whatever
else is yours stay.

Examples:

   vmlatch rm guest
   vmlatch rm --all`,
		Flags: hostFlags(ignoreFlag(),
			&urfave.BoolFlag{Name: "all", Usage: "remove those of every VM that has ended"}, jobsFlag(), jsonFlag()),
		Action: func(c *urfave.Context) error {
			ended := func(e *rundir.Entry) bool { return e.Status() == rundir.Ended }
			return onEach(c, s, ended, func(ctx context.Context, s *cli.IO, root rundir.Root, t *task) error {
				err := root.Forget(ctx, t.Name)
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
