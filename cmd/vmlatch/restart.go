package main

import (
	"errors"
	"fmt"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

func newRestart(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name:         "restart",
		Usage:        "end VMs and start them again from their specs",
		ArgsUsage:    "NAME…",
		Category:     catRun,
		BashComplete: completeNames,
		Description: `The spec is read again and checked while the VM still runs: one that could not be
started leaves the VM as it is. A confidential VM is launched anew, so it is measured
again and its owner is asked again; one that was started with --hold is held again.

VMs of "vmlatch run" and of a service manager's unit are left to those.

Examples:

   vmlatch restart guest
   vmlatch restart guest --timeout 2m`,
		Flags: hostFlags(timeoutFlag(), &urfave.BoolFlag{Name: "now", Usage: "kill it at once"}, slotWaitFlag()),
		Action: func(c *urfave.Context) error {
			if c.Duration("timeout") <= 0 {
				return cli.Usagef("--timeout %v: must be positive", c.Duration("timeout"))
			}
			if err := needNames(c); err != nil {
				return err
			}
			l, err := newLaunch(c, s)
			if err != nil {
				return err
			}
			return oneByOne(c, s, func(name string) error { return restart(c, l.alone(), name) })
		},
	}
}

func restart(c *urfave.Context, l *launch, name string) error {
	root, h, err := vms(c, l.io)
	if err != nil {
		return err
	}
	d, e, err := root.FindLogs(c.Context, name)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := mayRestart(e); err != nil {
		return err
	}
	s, err := launcher.LoadSpec(e.Record.Origin.Spec)
	if err != nil {
		return cli.WithHint(
			explain(err),
			fmt.Sprintf("it was started from %s; with a spec elsewhere: vmlatch stop %s, then vmlatch start FILE",
				e.Record.Origin.Spec, name),
		)
	}
	if s, err = s.Named(name); err != nil {
		return err
	}
	p, err := planSpec(c, h, s, e.Record.Emulated)
	if err != nil {
		return err
	}
	l.hold = e.Record.Origin.Hold
	if err := p.CanFinish(l.hold); err != nil {
		return err
	}
	if err := p.Replaceable(); err != nil {
		return err
	}
	if e.VMHeld {
		end, err := stopOnly(c, l.io, root, d)
		if err == nil && c.Context.Err() != nil {
			err = fmt.Errorf("%s: was stopped", name)
		}
		if err != nil && c.Context.Err() != nil {
			return cli.Fail(cli.ExitInterrupted, fmt.Errorf("%w; it is not started again", err),
				"vmlatch restart "+name)
		}
		if err != nil {
			return err
		}
		sayStopped(l.io, name, end)
		sweep(c.Context, l.io, root)
	}
	rec, err := l.start(c.Context, p)
	if err != nil && e.VMHeld {
		return fmt.Errorf("stopped, but not started again: %w", err)
	}
	if err != nil {
		return err
	}
	l.say(&rec)
	return nil
}

// stopOnly ends the VM that was found, and no later one of its name, which another
// command may have started.
func stopOnly(c *urfave.Context, s *cli.IO, root rundir.Root, d *rundir.Dir) (end, error) {
	m, err := launcher.Attach(c.Context, root, d.Name)
	if errors.Is(err, rundir.ErrNotFound) {
		return poweredOff, nil // it went meanwhile
	}
	if err != nil {
		return killed, err
	}
	defer m.Close()
	if !m.Is(d) {
		return killed, fmt.Errorf("%s: another command has started it anew", d.Name)
	}
	if c.Bool("now") {
		return killed, m.Kill(c.Context)
	}
	return stopMachine(c.Context, s, m, givenTimeout(c))
}

// mayRestart refuses VMs that another program stays with, or whose spec is unknown.
func mayRestart(e *rundir.Entry) error {
	switch r := e.Record; {
	case r == nil && e.Failure != nil && e.Status() == rundir.Ended:
		return startFailed(e)
	case r == nil || e.Status() == rundir.Launching:
		return cli.Fail(cli.ExitFailure, fmt.Errorf("%s: %w", e.Name, rundir.ErrBusy),
			"it is being launched; try again when that has finished")
	case r.Origin.Unit != "":
		return cli.Fail(cli.ExitFailure, fmt.Errorf("%s: it belongs to the unit %s", e.Name, r.Origin.Unit),
			"systemctl restart "+r.Origin.Unit)
	case r.Origin.Foreground && e.VMHeld:
		return cli.Fail(cli.ExitFailure, fmt.Errorf(`%s: it ends with the "vmlatch run" that started it`, e.Name),
			"interrupt that command and run it again")
	case r.Origin.Spec == "":
		return cli.Fail(cli.ExitFailure,
			fmt.Errorf("%s: its record does not say which spec it was started from", e.Name),
			"vmlatch stop, then vmlatch start FILE")
	}
	return nil
}
