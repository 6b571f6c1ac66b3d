package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

func newWait(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name:         "wait",
		Usage:        "wait until VMs end",
		ArgsUsage:    "NAME…",
		Category:     catLook,
		BashComplete: completeNames,
		Description: `The exit code tells how the guest ended: 0 if it powered off, and 5 otherwise, also
if "vmlatch stop" had to kill it. A VM that was ended before it had run is 0, and a
start that failed is 1. If the VM has ended, it returns at once. --now never waits: a
running VM is an error.

Examples:

   vmlatch wait guest
   vmlatch wait --json guest`,
		Flags: hostFlags(jsonFlag(), ignoreFlag(), &urfave.BoolFlag{Name: "now", Usage: "do not wait"}),
		Action: func(c *urfave.Context) error {
			if err := needNames(c); err != nil {
				return err
			}
			root, _, err := vms(c, s)
			if err != nil {
				return err
			}
			return oneByOne(c, s, func(name string) error { return waitFor(c, s, root, name) })
		},
	}
}

// waitFor waits for one VM.
func waitFor(c *urfave.Context, s *cli.IO, root rundir.Root, name string) error {
	d, e, err := root.FindLogs(c.Context, name)
	if c.Bool("ignore") && errors.Is(err, rundir.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { d.Close() }()
	if e.VMHeld && c.Bool("now") {
		return cli.Fail(cli.ExitFailure, fmt.Errorf("%s: it is still running", e.Name))
	}
	if d, e, err = settled(c, root, d, e); err != nil {
		return err
	}
	if startFailedInUnit() {
		return nil // and the VM that is found is one from before
	}
	if e.Failure != nil && !e.VMHeld {
		return startFailed(e)
	}
	log, err := d.OpenLog(rundir.EventsLog, false) // of this run, whatever uses the name later
	if err != nil {
		return err
	}
	defer log.Close()
	if e.VMHeld {
		if err := d.WaitEnd(c.Context, e); err != nil {
			return err
		}
		if last, now, err := root.FindLogs(c.Context, e.Name); err == nil {
			last.Close()
			if e.Record != nil && now.Record != nil && now.Record.Started.Equal(e.Record.Started) {
				e = now // its last record
			}
		}
	}
	exit, _, err := launcher.Ending(log)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		if err := s.JSON(map[string]any{"schema": "vmlatch.wait/1", "name": e.Name, "exit": exit}); err != nil {
			return err
		}
	}
	err = endError(e, exit)
	if inUnit() && errors.Is(err, errStopKilled) {
		s.Say("%v", err) // it was meant to end: a unit that failed would be started again
		return nil
	}
	return err
}

// inUnit reports whether this is the last command of a systemd unit.
func inUnit() bool { return os.Getenv("SERVICE_RESULT") != "" }

// startFailedInUnit reports whether this follows a start of the unit that failed
// (systemd.exec(5), "Environment Variables Set on Triggered Units").
func startFailedInUnit() bool {
	return inUnit() && os.Getenv("EXIT_CODE") == "exited" && os.Getenv("EXIT_STATUS") != "0"
}

// startFailed is the error about a VM of which there is nothing but why its last start
// failed.
func startFailed(e *rundir.Entry) error {
	f, hints := e.Failure, []string(nil)
	if f.Spec != "" {
		hints = []string{"to try again: vmlatch start " + f.Spec}
	}
	reason := strings.TrimPrefix(f.Reason, e.Name+": ")
	return cli.Fail(cli.ExitFailure, fmt.Errorf("%s: its last start failed: %s", e.Name, reason), hints...)
}

var errStopKilled = errors.New("killed by vmlatch stop")

// endError is the end of a guest as wait's error. One that was ended on purpose before it
// had run has lost nothing.
func endError(e *rundir.Entry, exit launcher.Exit) error {
	r := e.Record
	onPurpose := r != nil && launcher.State(r.State) == launcher.Stopping
	switch {
	case onPurpose && r.Released == nil:
		return nil
	case onPurpose && exit.Reason == launcher.ReasonKilled:
		return cli.Fail(cli.ExitGuest, fmt.Errorf("%s: %w", e.Name, errStopKilled))
	}
	return exitError(e.Name, exit)
}

// settled waits until no command is launching a VM any more, and finds it again. What
// it returns takes the place of d, which is closed if it differs.
func settled(c *urfave.Context, root rundir.Root, d *rundir.Dir, e *rundir.Entry) (*rundir.Dir, *rundir.Entry, error) {
	if e.Status() != rundir.Launching {
		return d, e, nil
	}
	if err := d.AwaitLaunch(c.Context); err != nil {
		return d, nil, err
	}
	now, err := root.Peek(d.Name)
	if err != nil {
		return d, nil, err
	}
	if now == nil || now.Record == nil || !now.Record.Settled {
		return d, nil, cli.Fail(cli.ExitFailure, fmt.Errorf("%s: its launch was given up", d.Name))
	}
	again, e, err := root.FindLogs(c.Context, d.Name)
	if err != nil {
		return d, nil, err
	}
	d.Close()
	return again, e, nil
}
