package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	urfave "github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher"
)

type startOptions struct {
	io    *cli.IO
	hold  bool
	steps func(string)
}

func newStart(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "start", Usage: "start a VM, take it through measurement and release, and exit", ArgsUsage: "FILE", Category: catRun,
		Description: `Start the VM that FILE describes. With --hold it stays paused: nothing of the
guest runs until "vmlatch release". Without --hold the spec must say how the
latch opens: an owner's command, or until = "nothing".

Examples:

   vmlatch start examples/sev/guest.toml --emulate --hold
   vmlatch start examples/plain/guest.toml`,
		Flags: hostFlags(
			&urfave.BoolFlag{Name: "hold", Usage: "stop while paused"},
			emulateFlag(), explainChoiceFlag(), slotWaitFlag(),
			&urfave.StringFlag{Name: "name", Usage: "call the VM `NAME` instead of what the spec says"},
			&urfave.BoolFlag{Name: "trace", Usage: "print each step of the launch", Hidden: true},
			&urfave.StringFlag{Name: "stop-at", Usage: "stop this process (SIGSTOP) before `STEP`, for tests", Hidden: true},
		),
		Action: func(c *urfave.Context) error {
			o := &startOptions{io: s, hold: c.Bool("hold"), steps: func(step string) {
				if c.Bool("trace") {
					fmt.Fprintf(s.Err, "step %s\n", step)
				}
				if step == c.String("stop-at") {
					_ = unix.Kill(unix.Getpid(), unix.SIGSTOP)
				}
			}}
			return runStart(c, o)
		},
	}
}

func runStart(c *urfave.Context, o *startOptions) error {
	p, err := prepare(c, o.io)
	if err != nil {
		return err
	}
	spec := p.spec
	if !o.hold && spec.Latch.Until == launcher.UntilSecret && len(spec.Latch.Owner) == 0 {
		return cli.Fail(cli.ExitUsage, fmt.Errorf("%s: its latch opens with a secret, and the spec names no command that asks the owner for one", spec.Name),
			"start it with --hold, then use measure, inject and release", `or give [latch] owner = ["command", …]`)
	}
	m, err := launcher.Start(c.Context, p.plan, launcher.StartOptions{Step: o.steps, Hold: o.hold, SlotWait: c.Duration("slot-wait"), Notice: o.notice, Warn: o.warn})
	if err != nil {
		return err
	}
	if err := o.finish(c.Context, spec, m); err != nil {
		if e := m.Discard(detached(c.Context)); e != nil {
			err = errors.Join(err, e)
		}
		return err
	}
	rec := m.Record() // locks and connection end with the process
	o.steps("done")
	switch {
	case o.hold:
		o.io.Say("%s: paused%s; nothing of the guest has run", rec.Name, label(rec.Emulated))
		if rec.Latch.Open {
			o.io.Hint("vmlatch release %s", rec.Name)
		} else {
			o.io.Hint("vmlatch measure %s, then inject, then release", rec.Name)
		}
	case rec.Latch.Verified && rec.Latch.Until == launcher.UntilIDBlock:
		o.io.Say("%s: running%s; the platform found it to be what its ID block says", rec.Name, label(rec.Emulated))
	case rec.Latch.Verified:
		o.io.Say("%s: running%s; its owner's secret was accepted", rec.Name, label(rec.Emulated))
	case rec.Latch.Until == launcher.UntilNothing:
		o.io.Say("%s: running%s; its launch was NOT verified (until = \"nothing\")", rec.Name, label(rec.Emulated))
	default:
		o.io.Say("%s: running", rec.Name)
	}
	return nil
}

func (o *startOptions) notice(text string) { o.io.Say("%s", text) }

func (o *startOptions) warn(r launcher.CheckResult) { o.io.Say("warning: %s (%s)", r.Cause, r.ID) }

// prepare works a start out; what dead VMs left is cleared away first.
func prepare(c *urfave.Context, s *cli.IO) (*planned, error) {
	args, err := cli.Args(c, "FILE")
	if err != nil {
		return nil, err
	}
	_, h, err := vms(c, s)
	if err != nil {
		return nil, err
	}
	p, err := loadPlan(c, h, args[0])
	if err != nil {
		return nil, err
	}
	if d := c.Duration("slot-wait"); d < 0 {
		return nil, cli.Usagef("--slot-wait %v: must not be negative", d)
	}
	if p.spec.Several() && !c.Bool("explain-choice") {
		ch := p.plan.Choices[0]
		s.Say("%s: %s is %s: %s", p.spec.Name, ch.What, ch.Value, ch.From)
	}
	if c.Bool("explain-choice") {
		for _, ch := range p.plan.Choices {
			s.Say("%s: %s is %s: %s", p.spec.Name, ch.What, ch.Value, ch.From)
		}
	}
	return p, nil
}

// slotWaitFlag bounds how long a start waits for a slot that comes back late.
func slotWaitFlag() urfave.Flag {
	return &urfave.DurationFlag{Name: "slot-wait", Value: 2 * time.Second, Usage: "how long to try again when there is no free encryption slot yet"}
}

// finish takes a paused machine to where the command leaves it.
func (o *startOptions) finish(ctx context.Context, spec *launcher.Spec, m *launcher.Machine) error {
	if o.hold {
		return nil
	}
	if spec.Latch.Until == launcher.UntilSecret {
		o.steps("measure")
		measurement, err := m.Measure(ctx)
		if err != nil {
			return err
		}
		o.steps("owner")
		packet, err := launcher.AskOwner(ctx, spec, measurement, o.io.Err)
		if err != nil {
			return err
		}
		o.steps("inject")
		if err := m.Inject(ctx, packet); err != nil {
			return err
		}
	}
	o.steps("release")
	return m.Release(ctx)
}
