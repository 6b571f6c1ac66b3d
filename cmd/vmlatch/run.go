package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

func newRun(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name:      "run",
		Usage:     "start a VM in the foreground with its console",
		ArgsUsage: "FILE",
		Category:  catRun,
		Description: `Start the VM and stay with it: its console is shown here, it ends with this
command, and the exit code tells how the guest ended (0: it powered off, 5:
otherwise). Ctrl-C presses the guest's power button; on a terminal, where the console
has the keyboard and the guest gets Ctrl-C, Ctrl-] does.

If the latch waits for a secret and the spec names no owner's command, the VM
is held until it is released from elsewhere.

Examples:

   vmlatch run examples/plain/guest.toml
   vmlatch run --emulate examples/sev/guest.toml`,
		Flags: hostFlags(
			emulateFlag(),
			explainChoiceFlag(),
			slotWaitFlag(),
			&urfave.StringFlag{Name: "name", Usage: "call the VM `NAME` instead of what the spec says"},
			&urfave.DurationFlag{
				Name:  "timeout",
				Value: 10 * time.Second,
				Usage: "give the guest this `DURATION` to power off after Ctrl-C",
			},
		),
		Action: func(c *urfave.Context) error { return runRun(c, s) },
	}
}

func runRun(c *urfave.Context, s *cli.IO) error {
	l, err := newLaunch(c, s)
	if err != nil {
		return err
	}
	p, err := prepare(c, s, nil)
	if err != nil {
		return err
	}
	latch := p.Guest.Latch
	l.hold = latch.Until == plan.UntilSecret && len(latch.Owner) == 0
	if err := l.begin(p.Name); err != nil {
		return err
	}
	opt := l.options(p)
	opt.Foreground = true
	var console *attachedConsole
	opt.Paused = func(*launcher.Machine) (err error) { // before the guest can write to it
		console, err = openConsole(c.Context, p.Dirs, p.Name)
		return err
	}
	m, err := l.carryOut(c.Context, p, opt)
	if console != nil {
		defer console.Close()
	}
	if err != nil {
		return err
	}
	defer m.Close()
	if l.hold {
		s.Say("%s: paused%s; waiting to be released", p.Name, label(p.Emulated))
		s.Hint("vmlatch measure %s, then inject, then release, from another terminal", p.Name)
	}
	rec := m.Record()
	if err := l.ready(c.Context, 0, &rec); err != nil {
		return errors.Join(err, m.Discard(detached(c.Context)))
	}
	if p.Emulated {
		s.Say("%s: emulated platform: protects nothing", p.Name)
	}
	if s.OutIsTerminal() {
		s.Say("%s: your keyboard is attached to the console; Ctrl-] stops the VM", p.Name)
	}
	m.Unlock() // other commands may work on it now
	return watch(c, s, m, console, p.Dirs, p.Name)
}

// watch shows the console until the guest ends or the user wants it to.
func watch(
	c *urfave.Context, s *cli.IO, m *launcher.Machine, console io.ReadWriter, root rundir.Root, name string,
) error {
	type ended struct {
		exit launcher.Exit
		err  error
	}
	exited := make(chan ended, 1)
	go func() {
		exit, err := m.Wait(detached(c.Context))
		exited <- ended{exit, err}
	}()
	ctx, cancel := context.WithCancel(c.Context)
	defer cancel()
	shown := make(chan error, 1)
	go func() { shown <- showConsole(ctx, s, console, false) }()
	var end ended
	select {
	case end = <-exited:
		<-shown // the console's last words
	case err := <-shown:
		wanted := errors.Is(err, errDetached) || ctx.Err() != nil
		if err != nil && !wanted {
			s.Say("%s: console: %v", name, err) // the VM goes on without it
		}
		if !wanted {
			select {
			case end = <-exited:
				return finishRun(c, s, root, name, end.exit, end.err)
			case <-ctx.Done():
			}
		}
		if err := stopNow(c, s, root, name); err != nil {
			return err
		}
		end = <-exited
		if c.Context.Err() == nil { // Ctrl-]: it ended because the user wanted it to
			end.exit.Reason = launcher.ReasonPoweredOff
		}
	}
	return finishRun(c, s, root, name, end.exit, end.err)
}

// finishRun clears the VM away and says how it ended.
func finishRun(c *urfave.Context, s *cli.IO, root rundir.Root, name string, exit launcher.Exit, err error) error {
	if err != nil {
		return err
	}
	sweep(detached(c.Context), s, root)
	if c.Context.Err() != nil {
		return &cli.Error{Code: cli.ExitInterrupted, Err: fmt.Errorf("%s: stopped by a signal", name)}
	}
	return exitError(name, exit)
}

// stopNow ends the VM as the user asked: power button, then force.
func stopNow(c *urfave.Context, s *cli.IO, root rundir.Root, name string) error {
	m, err := launcher.Attach(detached(c.Context), root, name)
	if errors.Is(err, rundir.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer m.Close()
	s.Say("%s: stopping", name)
	_, err = m.Stop(detached(c.Context), patienceWith(m, givenTimeout(c)))
	return err
}

// exitError turns the end of a guest into the command's.
func exitError(name string, e launcher.Exit) error {
	if e.Clean() {
		return nil
	}
	hint := map[string]string{
		"guest-reset": "the guest asked for a reboot, which a confidential VM cannot have; start it again",
		"guest-panic": "the guest's kernel panicked; its console log says why",
		"killed":      "its log is shown by \"vmlatch logs --kind qemu NAME\"",
	}[e.Reason]
	what := "ended by " + e.Reason
	if e.Reason == launcher.ReasonKilled {
		what = "QEMU was killed, or crashed"
	}
	if hint == "" {
		return cli.Fail(cli.ExitGuest, fmt.Errorf("%s: %s", name, what))
	}
	return cli.Fail(cli.ExitGuest, fmt.Errorf("%s: %s", name, what), hint)
}
