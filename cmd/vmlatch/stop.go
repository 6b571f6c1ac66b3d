package main

import (
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
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
			m, got, err := attach(c, s)
			if err != nil {
				return err
			}
			defer m.Close()
			graceful := false
			if c.Bool("now") {
				err = m.Kill(c.Context)
			} else {
				graceful, err = m.Stop(c.Context, c.Duration("timeout"))
			}
			if err != nil {
				return err
			}
			m.Close()
			if _, _, err := vms(c, s); err != nil { // removes its directory
				return err
			}
			if graceful {
				s.Say("%s: powered off", got[0])
			} else {
				s.Say("%s: killed", got[0])
			}
			return nil
		},
	}
}
