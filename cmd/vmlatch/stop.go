package main

import (
	"context"
	"errors"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

func newStop(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "stop", Usage: "end a VM", ArgsUsage: "NAME | --all", Category: catRun, BashComplete: completeNames,
		Description: `Press the guest's power button, wait for it to power off, then kill it. A VM
that has not been released yet is killed at once.

Examples:

   vmlatch stop guest
   vmlatch stop guest --timeout 2m
   vmlatch stop guest --now
   vmlatch stop --all`,
		Flags: hostFlags(
			timeoutFlag(),
			&urfave.BoolFlag{Name: "now", Usage: "kill it at once"},
			ignoreFlag(),
			&urfave.BoolFlag{Name: "all", Usage: "end every VM"}, jobsFlag(), jsonFlag(),
		),
		Action: func(c *urfave.Context) error {
			if c.Duration("timeout") <= 0 {
				return cli.Usagef("--timeout %v: must be positive", c.Duration("timeout"))
			}
			if c.Bool("all") {
				return stopAll(c, s)
			}
			if c.IsSet("jobs") || c.Bool("json") {
				return cli.Usagef("--jobs and --json are for --all")
			}
			got, err := cli.Args(c, "NAME")
			if err != nil {
				return err
			}
			root, _, err := vms(c, s)
			if err != nil {
				return err
			}
			graceful, err := stopVM(c.Context, root, got[0], c.Duration("timeout"), c.Bool("now"))
			if c.Bool("ignore") && errors.Is(err, rundir.ErrNotFound) {
				return nil
			}
			if err != nil {
				return err
			}
			sweep(c.Context, s, root) // removes its directory
			sayStopped(s, got[0], graceful)
			return nil
		},
	}
}

// sayStopped says how a VM ended, in a line and in a word.
func sayStopped(s *cli.IO, name string, graceful bool) (result string) {
	if graceful {
		s.Say("%s: powered off", name)
		return "stopped"
	}
	s.Say("%s: killed", name)
	return "killed"
}

func stopVM(ctx context.Context, root rundir.Root, name string, timeout time.Duration, now bool) (graceful bool, err error) {
	if now { // whatever another command is doing with it
		return false, launcher.KillByName(ctx, root, name)
	}
	m, err := launcher.Attach(root, name)
	if err != nil {
		return false, err
	}
	defer m.Close()
	return m.Stop(ctx, timeout)
}

func ignoreFlag() urfave.Flag {
	return &urfave.BoolFlag{Name: "ignore", Usage: "no such VM is no error"}
}

func timeoutFlag() urfave.Flag {
	return &urfave.DurationFlag{Name: "timeout", Value: stopTimeout, Usage: "how long the guest may take"}
}
