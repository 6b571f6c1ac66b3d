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
that has not been released yet is killed at once. Without --timeout a guest gets 30
seconds, and 2 minutes if it runs in software (TCG).

The exit code is 5 if a guest had to be killed that did not power off in time.

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
				end, err := stopVM(ctx, s, root, t.Name, givenTimeout(c), c.Bool("now"))
				if errors.Is(err, rundir.ErrNotFound) && (c.Bool("ignore") || c.Bool("all")) {
					t.Result = "ended"
					return nil
				}
				if err != nil {
					return err
				}
				t.Result = sayStopped(s, t.Name, end)
				return end.err(t.Name)
			})
		},
	}
}

// end is how a VM was ended.
type end int

const (
	poweredOff end = iota
	killed         // as asked, or before it had run
	forced         // it had its time, and did not power off
)

// err is the error of a guest that was forced: its file systems may not be clean.
func (e end) err(name string) error {
	if e != forced {
		return nil
	}
	return cli.Fail(cli.ExitGuest, fmt.Errorf("%s: it did not power off in time", name),
		"a guest that still boots, or runs neither systemd-logind nor acpid, does not hear the power button",
		"--timeout 5m gives it longer")
}

// sayStopped says how a VM ended, in a line and in a word.
func sayStopped(s *cli.IO, name string, e end) (result string) {
	if e == poweredOff {
		s.Say("%s: powered off", name)
		return "stopped"
	}
	s.Say("%s: killed", name)
	return "killed"
}

func stopVM(
	ctx context.Context, s *cli.IO, root rundir.Root, name string, timeout time.Duration, now bool,
) (end, error) {
	if now { // whatever another command is doing with it
		return killed, launcher.KillByName(ctx, root, name)
	}
	m, err := launcher.Attach(ctx, root, name)
	if err != nil {
		return killed, err
	}
	defer m.Close()
	return stopMachine(ctx, s, m, timeout)
}

// stopMachine ends a VM as the user asked, and says so if that takes long.
func stopMachine(
	ctx context.Context, s *cli.IO, m *launcher.Machine, timeout time.Duration,
) (end, error) {
	name := m.Record().Name
	asked := m.MayRun()
	timeout = patienceWith(m, timeout)
	patience := time.AfterFunc(
		time.Second,
		func() { s.Say("%s: was asked to power off; waiting up to %v", name, timeout) },
	)
	defer patience.Stop()
	graceful, err := m.Stop(ctx, timeout)
	if err != nil && ctx.Err() != nil && asked {
		err = cli.Fail(cli.ExitInterrupted, fmt.Errorf("%s: was asked to power off, and not waited for", name),
			"vmlatch stop "+name)
	}
	switch {
	case graceful:
		return poweredOff, err
	case asked:
		return forced, err
	}
	return killed, err
}

// How long a guest has to power off, if the user does not say.
const (
	defaultTimeout  = 30 * time.Second
	softwareTimeout = 2 * time.Minute // under TCG a systemd that has just booted takes a minute
)

// givenTimeout is what the user said; 0 for nothing.
func givenTimeout(c *urfave.Context) time.Duration {
	if !c.IsSet("timeout") {
		return 0
	}
	return c.Duration("timeout")
}

// patienceWith is how long a machine gets to power off.
func patienceWith(m *launcher.Machine, given time.Duration) time.Duration {
	if given > 0 {
		return given
	}
	if m.Record().Emulated { // it runs in software, whatever its command line says
		return softwareTimeout
	}
	for _, ch := range m.Record().Choices {
		if ch.What == "accel" && ch.Value == "tcg" {
			return softwareTimeout
		}
	}
	return defaultTimeout
}

func ignoreFlag() urfave.Flag {
	return &urfave.BoolFlag{Name: "ignore", Usage: "do not fail if the VM does not exist"}
}

func timeoutFlag() urfave.Flag {
	return &urfave.DurationFlag{
		Name:        "timeout",
		Value:       defaultTimeout,
		DefaultText: "30s, or 2m under TCG",
		Usage:       "give the guest this `DURATION` to power off, such as 5m",
	}
}
