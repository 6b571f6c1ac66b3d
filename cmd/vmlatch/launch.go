package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/cmd/internal/sdnotify"
	"github.com/vmlatch/vmlatch/launcher"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// launch takes VMs from their plan to where a command leaves them.
type launch struct {
	io       *cli.IO
	hold     bool
	slotWait time.Duration
	steps    func(string)
	manager  *sdnotify.Manager // that waits for this start; nil for none
	unit     string
}

// newLaunch reads the flags that all ways of starting have.
func newLaunch(c *urfave.Context, s *cli.IO) (*launch, error) {
	d := c.Duration("slot-wait")
	if d < 0 {
		return nil, cli.Usagef("--slot-wait %v: must not be negative", d)
	}
	m, err := sdnotify.FromEnv() // in any case, or QEMU and owners' commands would get its socket
	l := &launch{io: s, slotWait: d, steps: func(string) {}, manager: m}
	if m != nil {
		l.unit = sdnotify.Unit()
	}
	return l, cli.Fail(cli.ExitUsage, err, notifyHint)
}

const notifyHint = "NOTIFY_SOCKET is the service manager's socket, a path or @ and an abstract name; without a manager unset it"

// alone is a launch of which no service manager is told: it waits for one VM.
func (l *launch) alone() *launch {
	l.manager, l.unit = nil, ""
	return l
}

// slotWaitFlag bounds how long a start waits for a slot that comes back late.
func slotWaitFlag() urfave.Flag {
	return &urfave.DurationFlag{Name: "slot-wait", Value: 2 * time.Second, Usage: "try again for a `DURATION` when there is no free encryption slot yet"}
}

// options are what the launcher needs to know.
func (l *launch) options() launcher.StartOptions {
	return launcher.StartOptions{
		Hold: l.hold, Unit: l.unit, SlotWait: l.slotWait, Step: l.steps,
		Notice: func(text string) { l.io.Say("%s", text) },
		Warn:   func(r launcher.CheckResult) { l.io.Say("warning: %s (%s)", r.Cause, r.ID) },
	}
}

// canFinish refuses a start that would stop half-way, with nobody told.
func (l *launch) canFinish(spec *launcher.Spec) error {
	if l.hold || spec.Latch.Until != launcher.UntilSecret || len(spec.Latch.Owner) > 0 {
		return nil
	}
	return cli.Fail(cli.ExitUsage, fmt.Errorf("%s: its latch opens with a secret, and the spec names no command that asks the owner for one", spec.Name),
		"start it with --hold, then use measure, inject and release", `or give [latch] owner = ["command", …]`)
}

// start does all of a start in the background. When it fails, nothing is left.
func (l *launch) start(ctx context.Context, p *planned) (rec rundir.Record, err error) {
	if err := l.canFinish(p.spec); err != nil {
		return rec, err
	}
	if err := l.manager.Status("%s: starting", p.spec.Name); err != nil { // it would not hear the end either
		return rec, cli.Fail(cli.ExitHost, err, notifyHint)
	}
	if l.slotWait > 0 {
		_ = l.manager.Extend(l.slotWait + time.Minute)
	}
	m, err := launcher.Start(ctx, p.plan, l.options())
	if err != nil {
		return rec, err
	}
	defer m.Close()
	if err = l.finish(ctx, p.spec, m); err == nil {
		rec = m.Record()
		err = l.ready(ctx, rec.PID, &rec)
	}
	if err != nil {
		return rec, errors.Join(err, m.Discard(detached(ctx)))
	}
	l.steps("done")
	return rec, nil
}

// ready tells the service manager. A slow one is no reason to end a VM that is right.
func (l *launch) ready(ctx context.Context, pid int, rec *rundir.Record) error {
	status := l.outcome(rec)
	if l.hold { // nobody will change it later
		status = fmt.Sprintf("%s: started, and held; \"vmlatch ps\" tells its state", rec.Name)
	}
	err := l.manager.Ready(ctx, pid, status)
	if errors.Is(err, sdnotify.ErrSlow) && ctx.Err() == nil {
		l.io.Say("warning: %s: %v", rec.Name, err)
		return nil
	}
	return err
}

// finish takes a paused machine to where the command leaves it.
func (l *launch) finish(ctx context.Context, spec *launcher.Spec, m *launcher.Machine) error {
	if l.hold {
		return nil
	}
	if spec.Latch.Until == launcher.UntilSecret {
		l.steps("measure")
		measurement, err := m.Measure(ctx)
		if err != nil {
			return err
		}
		l.steps("owner")
		_ = l.manager.Status("%s: measured; waiting for its owner", spec.Name)
		_ = l.manager.Extend(time.Duration(spec.Latch.Timeout) + time.Minute)
		said := &cli.EscapeWriter{W: l.io.Err}
		packet, err := m.AskOwner(ctx, spec, measurement, said)
		_ = said.Flush()
		if err != nil {
			return err
		}
		l.steps("inject")
		if err := m.Inject(ctx, packet); err != nil {
			return err
		}
	}
	l.steps("release")
	return m.Release(ctx)
}

// outcome says where a start has brought a VM.
func (l *launch) outcome(rec *rundir.Record) string {
	state := "running" + label(rec.Emulated)
	switch {
	case l.hold:
		return fmt.Sprintf("%s: paused%s; nothing of the guest has run", rec.Name, label(rec.Emulated))
	case rec.Latch.Verified && rec.Latch.Until == launcher.UntilIDBlock:
		state += "; the platform found it to be what its ID block says"
	case rec.Latch.Verified:
		state += "; its owner's secret was accepted"
	case rec.Latch.Until == launcher.UntilNothing:
		state += `; its launch was NOT verified (until = "nothing")`
	}
	return rec.Name + ": " + state
}

// say tells the user the outcome, and what comes next.
func (l *launch) say(rec *rundir.Record) {
	l.io.Say("%s", l.outcome(rec))
	switch {
	case l.hold && rec.Latch.Open:
		l.io.Hint("vmlatch release %s", rec.Name)
	case l.hold:
		l.io.Hint("vmlatch measure %s, then inject, then release", rec.Name)
	}
}
