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
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

func newRun(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "run", Usage: "start a VM in the foreground with its console", ArgsUsage: "FILE", Category: catRun,
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
			emulateFlag(), explainChoiceFlag(), slotWaitFlag(),
			&urfave.StringFlag{Name: "name", Usage: "call the VM `NAME` instead of what the spec says"},
			&urfave.DurationFlag{Name: "timeout", Value: 10 * time.Second, Usage: "give the guest this `DURATION` to power off after Ctrl-C"},
		),
		Action: func(c *urfave.Context) error { return runRun(c, s) },
	}
}

func runRun(c *urfave.Context, s *cli.IO) error {
	l, err := newLaunch(c, s)
	if err != nil {
		return err
	}
	p, err := prepare(c, s)
	if err != nil {
		return err
	}
	spec, plan := p.spec, p.plan
	l.hold = spec.Latch.Until == launcher.UntilSecret && len(spec.Latch.Owner) == 0
	if err := l.manager.Status("%s: starting", spec.Name); err != nil {
		return cli.Fail(cli.ExitHost, err, notifyHint)
	}
	opt := l.options()
	opt.Foreground = true
	m, err := launcher.Start(c.Context, plan, opt)
	if err != nil {
		return err
	}
	defer m.Close()
	console, err := openConsole(plan.Dirs, spec.Name)
	if err == nil {
		defer console.Close()
		err = l.finish(c.Context, spec, m)
		if l.hold && err == nil {
			s.Say("%s: paused%s; waiting to be released", spec.Name, label(plan.Emulated))
			s.Hint("vmlatch measure %s, then inject, then release, from another terminal", spec.Name)
		}
	}
	if err == nil {
		rec := m.Record()
		err = l.ready(c.Context, 0, &rec)
	}
	if err != nil {
		return errors.Join(err, m.Discard(detached(c.Context)))
	}
	if plan.Emulated {
		s.Say("%s: emulated platform: protects nothing", spec.Name)
	}
	if s.OutIsTerminal() {
		s.Say("%s: the keyboard is its console's; Ctrl-] ends the VM", spec.Name)
	}
	m.Unlock() // other commands may work on it now
	return watch(c, s, m, console, plan.Dirs, spec.Name)
}

// watch shows the console until the guest ends or the user wants it to.
func watch(c *urfave.Context, s *cli.IO, m *launcher.Machine, console io.ReadWriter, root rundir.Root, name string) error {
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
	_, err = m.Stop(detached(c.Context), c.Duration("timeout"))
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
		"killed":      "QEMU was killed or crashed; its log is shown by \"vmlatch logs --kind qemu NAME\"",
	}[e.Reason]
	if hint == "" {
		return cli.Fail(cli.ExitGuest, fmt.Errorf("%s: ended by %s", name, e.Reason))
	}
	return cli.Fail(cli.ExitGuest, fmt.Errorf("%s: ended by %s", name, e.Reason), hint)
}
