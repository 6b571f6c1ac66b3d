package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

func newStop(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name:         "stop",
		Usage:        "end VMs",
		ArgsUsage:    "NAME… | --all",
		Category:     catRun,
		BashComplete: completeAlive,
		Description: `Press the guest's power button, wait for it to power off, then kill it. A VM
that has not been released yet is killed at once.

Examples:

   vmlatch stop guest
   vmlatch stop guest --timeout 2m
   vmlatch stop guest --now
   vmlatch stop --all`,
		Flags: hostFlags(timeoutFlag(), &urfave.BoolFlag{Name: "now", Usage: "kill it at once"}, ignoreFlag(),
			&urfave.BoolFlag{Name: "all", Usage: "end every VM"}, jobsFlag(), jsonFlag()),
		Action: func(c *urfave.Context) error {
			if c.Duration("timeout") <= 0 {
				return cli.Usagef("--timeout %v: must be positive", c.Duration("timeout"))
			}
			alive := func(e *rundir.Entry) bool { return e.VMHeld }
			return onEach(c, s, alive, func(ctx context.Context, s *cli.IO, root rundir.Root, t *task) error {
				graceful, err := stopVM(ctx, s, root, t.Name, c.Duration("timeout"), c.Bool("now"))
				if errors.Is(err, rundir.ErrNotFound) && (c.Bool("ignore") || c.Bool("all")) {
					t.Result = "ended"
					return nil
				}
				if err != nil {
					return err
				}
				t.Result = sayStopped(s, t.Name, graceful)
				return nil
			})
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

func stopVM(
	ctx context.Context, s *cli.IO, root rundir.Root, name string, timeout time.Duration, now bool,
) (graceful bool, err error) {
	if now { // whatever another command is doing with it
		return false, launcher.KillByName(ctx, root, name)
	}
	m, err := launcher.Attach(ctx, root, name)
	if err != nil {
		return false, err
	}
	defer m.Close()
	return stopMachine(ctx, s, m, timeout)
}

// stopMachine ends a VM as the user asked, and says so if that takes long.
func stopMachine(
	ctx context.Context, s *cli.IO, m *launcher.Machine, timeout time.Duration,
) (graceful bool, err error) {
	name := m.Record().Name
	asked := m.State() == launcher.Running || m.State() == launcher.Stopping
	patience := time.AfterFunc(
		time.Second,
		func() { s.Say("%s: was asked to power off; waiting up to %v", name, timeout) },
	)
	defer patience.Stop()
	graceful, err = m.Stop(ctx, timeout)
	if err != nil && ctx.Err() != nil && asked {
		err = cli.Fail(cli.ExitInterrupted, fmt.Errorf("%s: was asked to power off, and not waited for", name),
			"vmlatch stop "+name)
	}
	return graceful, err
}

func ignoreFlag() urfave.Flag {
	return &urfave.BoolFlag{Name: "ignore", Usage: "do not fail if the VM does not exist"}
}

func timeoutFlag() urfave.Flag {
	return &urfave.DurationFlag{
		Name:  "timeout",
		Value: 30 * time.Second,
		Usage: "give the guest this `DURATION` to power off, such as 2m",
	}
}
