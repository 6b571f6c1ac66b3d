package launcher

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/vmlatch/vmlatch/launcher/check"
	"github.com/vmlatch/vmlatch/launcher/confine"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/plan"
)

// StartOptions change how a machine is started.
type StartOptions struct {
	// Foreground ties the machine to this process: it dies with the calling
	// thread, which must stay alive. Start locks the goroutine to it.
	Foreground bool
	// Hold leaves the machine paused on purpose: it stays so when this process
	// goes, and other commands take it further. Without it a machine whose
	// launching process dies is ended by the next command.
	Hold bool
	// Unit is the service manager's unit that the machine belongs to, for the record.
	Unit string
	// SlotWait is how long a start is tried again that found no encryption slot:
	// the platform gives slots back late.
	SlotWait time.Duration
	// Early is a stage that was forked before the plan was made, which saves the time it takes to
	// begin. The caller closes it.
	Early *confine.Early
	// Notice is told what a start waits for: a slot, or a person who decides; nil is fine.
	Notice func(text string)
	// Warn is told of each check that warns; nil is fine. Checks that refuse are
	// an error, always.
	Warn func(check.Result)
	// Paused, if not nil, is called when the machine is paused, before it is taken
	// further; an error ends it.
	Paused func(*Machine) error
	// AskingOwner is called before the owner's command runs; nil is fine.
	AskingOwner func()
	// OwnerKeeper is a command line before which the owner's command line is put: a program
	// that runs the command and ends all that it leaves. Without it, what closes its
	// descriptors and leaves its session outlives the launch.
	OwnerKeeper []string
	// OwnerStderr gets what the owner's command writes to its standard error; nil
	// drops it.
	OwnerStderr io.Writer
}

// Launch starts the VM that a spec file describes and takes it to where the spec says:
// it is started paused, measured, its owner asked, the owner's secret injected, and
// released. When it fails nothing of the VM is left. The caller closes the machine,
// which lives on.
func Launch(ctx context.Context, file string, c Config, opt StartOptions) (*Machine, error) {
	h, err := c.host()
	if err != nil {
		return nil, err
	}
	c.Host = h // is read once
	s, err := LoadSpec(file)
	if err != nil {
		return nil, err
	}
	facts, err := GatherFacts(ctx, c, s)
	if err != nil {
		return nil, err
	}
	p, err := NewPlan(s, facts, h.Root())
	if err != nil {
		return nil, err
	}
	return p.Launch(ctx, opt)
}

// Launch carries out a plan as the function [Launch] does.
func (p *Plan) Launch(ctx context.Context, opt StartOptions) (*Machine, error) {
	if err := p.CanFinish(opt.Hold); err != nil {
		return nil, err
	}
	m, err := p.Start(ctx, opt)
	if err != nil {
		return nil, err
	}
	if opt.Paused != nil {
		err = opt.Paused(m)
	}
	if err == nil && !opt.Hold {
		err = m.open(ctx, p, opt)
	}
	if err != nil {
		return nil, errors.Join(err, m.Discard(context.WithoutCancel(ctx)))
	}
	return m, nil
}

// CanFinish refuses a launch that would stop half-way, with nothing to take it further.
func (p *Plan) CanFinish(hold bool) error {
	l := p.Guest.Latch
	if hold && l.Until == plan.UntilEvidence {
		return &fault.Error{
			Kind: fault.Usage, Op: p.Name,
			Err: errors.New("--hold: a guest that proves itself to a broker must run for that"),
		}
	}
	if hold && p.guest.FromBroker() {
		return &fault.Error{
			Kind: fault.Usage, Op: p.Name,
			Err: errors.New("--hold: its broker gives session and secret in one start"),
		}
	}
	if hold || l.Until != plan.UntilSecret || len(l.Owner) > 0 || p.guest.FromBroker() {
		return nil
	}
	return &fault.Error{
		Kind: fault.Spec, Op: p.Name,
		Err: errors.New("its latch opens with a secret, and the spec names no command that asks the owner for one"),
		Fix: "start it with --hold, then use measure, inject and release\n" +
			`or give [latch] owner = ["command", …]`,
	}
}
