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
	"github.com/vmlatch/vmlatch/launcher/check"
	"github.com/vmlatch/vmlatch/launcher/confine"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// launch takes VMs from their plan to where a command leaves them.
type launch struct {
	io       *cli.IO
	hold     bool
	slotWait time.Duration
	manager  *sdnotify.Manager // that waits for this start; nil for none
	unit     string
	early    *confine.Early // for its VM; nil for none
}

// stage is the command line that runs [confine.Run]: the very program that runs, whatever is
// installed in its place by now.
func stage() []string { return []string{"/proc/self/exe", plan.Stage} }

// forkEarly lets QEMU's process begin while the plan is made.
func (l *launch) forkEarly(emulate bool) {
	if !emulate {
		l.early = confine.ForkEarly(stage(), confine.Look("/"))
	}
}

// newLaunch reads the flags that all ways of starting have.
func newLaunch(c *urfave.Context, s *cli.IO) (*launch, error) {
	d := c.Duration("slot-wait")
	if d < 0 {
		return nil, cli.Usagef("--slot-wait %v: must not be negative", d)
	}
	m, err := sdnotify.FromEnv() // in any case, or QEMU and owners' commands would get its socket
	l := &launch{io: s, slotWait: d, manager: m}
	if m != nil {
		l.unit = sdnotify.Unit()
	}
	return l, cli.Fail(cli.ExitUsage, err, notifyHint)
}

const notifyHint = "NOTIFY_SOCKET is the service manager's socket, a path or @ and an abstract name;" +
	" without a manager unset it"

// alone is a launch of which no service manager is told: it waits for one VM.
func (l *launch) alone() *launch {
	l.manager, l.unit = nil, ""
	return l
}

// slotWaitFlag bounds how long a start waits for a slot that comes back late.
func slotWaitFlag() urfave.Flag {
	return &urfave.DurationFlag{
		Name:  "slot-wait",
		Value: 2 * time.Second,
		Usage: "try again for this `DURATION` if there is no free encryption slot yet",
	}
}

// options are what the launcher needs to know.
func (l *launch) options(p *launcher.Plan) launcher.StartOptions {
	return launcher.StartOptions{
		Hold: l.hold, Unit: l.unit, SlotWait: l.slotWait, Early: l.early,
		Notice: func(text string) { l.io.Say("%s", text) },
		Warn:   func(r check.Result) { l.io.Say("warning: %s: %s (%s)", p.Name, r.Cause, r.ID) },
		AskingOwner: func() {
			what := "measured; waiting for its owner"
			if p.Guest.Latch.Until == plan.UntilEvidence {
				what = "running; waiting until its owner's broker accepts it"
			}
			_ = l.manager.Status("%s: %s", p.Name, what)
			_ = l.manager.Extend(time.Duration(p.Guest.Latch.Timeout) + time.Minute)
		},
	}
}

// carryOut launches a VM. What its owner's command writes to its standard error is shown.
func (l *launch) carryOut(
	ctx context.Context, p *launcher.Plan, opt launcher.StartOptions,
) (*launcher.Machine, error) {
	said := &cli.EscapeWriter{W: l.io.Err}
	opt.OwnerStderr, opt.OwnerKeeper = said, []string{"/proc/self/exe", keepOwner}
	m, err := p.Launch(ctx, opt)
	_ = said.Flush()
	l.note(ctx, p, err)
	return m, err
}

// note keeps why a start came to nothing: an unattended one has no other witness. A start
// that was interrupted, or whose name was taken, is not kept.
func (l *launch) note(ctx context.Context, p *launcher.Plan, err error) {
	if err == nil || ctx.Err() != nil || errors.Is(err, rundir.ErrExists) {
		return
	}
	if e := fault.As(err); e != nil && e.Kind == fault.NameTaken { // it is that VM's name
		return
	}
	f := rundir.Failure{
		At:     time.Now().UTC(),
		Spec:   p.Guest.File.Where(),
		Reason: err.Error(),
		Code:   int(cli.ExitFailure),
	}
	var e *cli.Error
	if errors.As(explain(err), &e) {
		f.Code, f.Hints = int(e.Code), e.Hints
	}
	if err := p.Dirs.NoteFailure(detached(ctx), p.Name, f); err != nil {
		l.io.Say("warning: %s: why it did not start could not be kept: %v", p.Name, err)
	}
}

// start does all of a start in the background. When it fails, nothing is left.
func (l *launch) start(ctx context.Context, p *launcher.Plan) (rec rundir.Record, err error) {
	if err := p.CanFinish(l.hold); err != nil {
		l.note(ctx, p, err)
		return rec, err
	}
	if err := l.begin(p.Name); err != nil {
		return rec, err
	}
	m, err := l.carryOut(ctx, p, l.options(p))
	if err != nil {
		return rec, err
	}
	defer m.Close()
	rec = m.Record()
	if err := l.ready(ctx, rec.PID, &rec); err != nil {
		return rec, errors.Join(err, m.Discard(detached(ctx)))
	}
	launcher.TraceOf(ctx).Step("done")
	return rec, nil
}

// begin tells the service manager that a start begins. If it cannot be told that, it
// would not hear the end either.
func (l *launch) begin(name string) error {
	if err := l.manager.Status("%s: starting", name); err != nil {
		return cli.Fail(cli.ExitHost, err, notifyHint)
	}
	if l.slotWait > 0 {
		_ = l.manager.Extend(l.slotWait + time.Minute)
	}
	return nil
}

// ready tells the service manager. A slow one does not end a verified VM.
func (l *launch) ready(ctx context.Context, pid int, rec *rundir.Record) error {
	status := l.outcome(rec)
	if l.hold { // the status is not updated later
		status = fmt.Sprintf("%s: started, and held; \"vmlatch ps\" tells its state", rec.Name)
	}
	err := l.manager.Ready(ctx, pid, status)
	if errors.Is(err, sdnotify.ErrSlow) && ctx.Err() == nil {
		l.io.Say("warning: %s: %v", rec.Name, err)
		return nil
	}
	return err
}

// outcome tells where a start has brought a VM.
func (l *launch) outcome(rec *rundir.Record) string {
	state := "running" + label(rec.Emulated)
	switch {
	case l.hold:
		return fmt.Sprintf("%s: paused%s; nothing of the guest has run", rec.Name, label(rec.Emulated))
	case rec.Latch.Verified && rec.Latch.Until == plan.UntilIDBlock:
		state += "; the platform found it to be what its ID block says"
	case rec.Latch.Proof == launcher.ProofReceived:
		state += "; its owner's broker accepted its evidence, and it has its secret"
	case rec.Latch.Proof == launcher.ProofReleased:
		state += "; its owner's broker accepted its evidence and released the secret; " +
			"the guest has not said that it has it"
	case rec.Latch.Verified:
		state += "; its owner's secret was accepted"
	case rec.Latch.Until == plan.UntilNothing:
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
