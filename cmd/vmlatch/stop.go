package main

import (
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

func newStop(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "stop", Usage: "end a VM", ArgsUsage: "NAME", Category: catRun, BashComplete: completeNames,
		Description: `Press the guest's power button, wait for it to power off, then kill it. A VM
that has not been released yet is killed at once.

Examples:

   vmlatch stop guest
   vmlatch stop guest --timeout 2m
   vmlatch stop guest --now`,
		Flags: hostFlags(
			&urfave.DurationFlag{Name: "timeout", Value: 30 * time.Second, Usage: "how long the guest may take"},
			&urfave.BoolFlag{Name: "now", Usage: "kill it at once"},
		),
		Action: func(c *urfave.Context) error {
			if c.Duration("timeout") <= 0 {
				return cli.Usagef("--timeout %v: must be positive", c.Duration("timeout"))
			}
			got, err := cli.Args(c, "NAME")
			if err != nil {
				return err
			}
			root, _, err := vms(c, s)
			if err != nil {
				return err
			}
			graceful, err := stopVM(c, root, got[0])
			if err != nil {
				return err
			}
			sweep(c.Context, s, root) // removes its directory
			if graceful {
				s.Say("%s: powered off", got[0])
			} else {
				s.Say("%s: killed", got[0])
			}
			return nil
		},
	}
}

func stopVM(c *urfave.Context, root rundir.Root, name string) (graceful bool, err error) {
	if c.Bool("now") { // whatever another command is doing with it
		return false, launcher.KillByName(c.Context, root, name)
	}
	m, err := launcher.Attach(root, name)
	if err != nil {
		return false, err
	}
	defer m.Close()
	return m.Stop(c.Context, c.Duration("timeout"))
}
