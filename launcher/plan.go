package launcher

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/launcher/check"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// Plan is everything that a start would do, as a value, and the guest that it is for.
type Plan struct {
	*plan.Plan
	guest *tee.Guest
}

// Several reports whether there was a choice between technologies.
func (p *Plan) Several() bool { return p.guest.Several() }

// NewPlan works out a start: of the first technology of those asked for that disk
// images, host and QEMU allow. With several it also makes the checks of the host, which
// read files; else it reads no file and asks no program. What is wrong with the spec is
// an error and no reason to take another technology, which might protect less.
func NewPlan(s *tee.Spec, f *plan.Facts, root rundir.Root) (*Plan, error) {
	names, from, err := s.Candidates(f.Demands)
	if err != nil {
		return nil, err
	}
	several := len(names) > 1
	var rejected []string
	onlyHost := true
	for _, name := range names {
		g, err := guestOf(s, name)
		if err != nil {
			return nil, err
		}
		choice := rundir.Choice{What: "technology", Value: name, From: from}
		for _, r := range rejected {
			choice.From += "; not " + r
		}
		p, why := try(g, f, choice, root, several)
		if why == nil {
			return p, nil
		}
		if !several || !rejects(why) {
			return nil, why
		}
		rejected = append(rejected, name+": "+fault.Bare(why))
		onlyHost = onlyHost && errors.Is(why, fault.ErrHost)
	}
	none := &fault.Error{
		Kind: fault.Spec, File: s.File().Path, Check: fault.Technology,
		Err: fmt.Errorf("none of the technologies works:\n  %s", strings.Join(rejected, "\n  ")),
		Fix: `"vmlatch host" shows what this host can do`,
	}
	if onlyHost {
		none.Kind = fault.Host
	}
	return nil, none
}

// unfit marks the reasons for which another technology may be taken.
type unfit struct{ error }

func (u unfit) Unwrap() error { return u.error }

// try plans for a guest. among means that another technology may be taken instead.
func try(g *tee.Guest, f *plan.Facts, chosen rundir.Choice, root rundir.Root, among bool) (*Plan, error) {
	if err := g.Satisfy(f.Demands); err != nil {
		return nil, unfit{err}
	}
	if err := g.Fits(f, among); err != nil {
		return nil, unfit{err}
	}
	p, err := plan.Build(&g.Guest, g, chosen, f, root)
	if err == nil && among {
		err = refusedByHost(g, f)
	}
	if err != nil {
		return nil, err
	}
	return &Plan{p, g}, nil
}

// rejects reports whether an error only means that a technology is not possible here.
func rejects(err error) bool {
	var u unfit
	return errors.As(err, &u) || errors.Is(err, fault.ErrHost)
}

// refusedByHost is the error of the checks that are about the host; nil if there are
// none, or if the spec is at fault too: that is told of the plan. A slot that is taken
// now may be free in a moment: a start waits for it.
func refusedByHost(g *tee.Guest, f *plan.Facts) error {
	err := check.Error(g.File.Path, check.Except(check.Host(g, f), check.FreeSlots))
	if errors.Is(err, fault.ErrHost) {
		return err
	}
	return nil
}

// Check makes all checks of a plan, on the facts that it was made from.
func (p *Plan) Check() []check.Result { return check.Plan(p.guest, p.Plan) }

// CheckFiles is an error unless what QEMU reads can be read.
func (p *Plan) CheckFiles() error {
	if missing := p.Missing(); len(missing) > 0 {
		return missing[0]
	}
	return nil
}

// Replaceable is the error of a plan that could not take the place of a running VM of
// its name: what that VM has, such as its slot, will be free.
func (p *Plan) Replaceable() error {
	if err := p.CheckFiles(); err != nil {
		return err
	}
	return check.Error(p.Guest.File.Path,
		check.Except(p.Check(), check.NameFree, check.FreeSlots, check.FreeHugePages, check.MemoryAvailable,
			check.DisksFree, check.PortsFree))
}

// CheckFile makes all checks that can be made of a spec file, also where it is refused
// early: what refuses it is then the first result, and the plan is nil. name, if not
// "", replaces the VM's name.
func CheckFile(ctx context.Context, file, name string, c Config) ([]check.Result, *Plan, error) {
	h, err := c.host()
	if err != nil {
		return nil, nil, err
	}
	c.Host = h // is read once
	s, err := LoadSpec(file)
	if err == nil && name != "" {
		if s, err = s.Named(name); err != nil {
			return nil, nil, err
		}
	}
	if err != nil {
		return refusedBy(err, s, nil)
	}
	facts, err := GatherFacts(ctx, c, s)
	if err != nil {
		return refusedBy(err, s, nil)
	}
	p, err := NewPlan(s, facts, h.Root())
	if err != nil {
		return refusedBy(err, s, facts)
	}
	return p.Check(), p, nil
}

// refusedBy puts the error that refuses a spec before the results of the checks that
// can be made all the same: those of the spec, unless it is nil, and of the host if it
// was looked at. Of several technologies none is more right than another, so there are
// none.
func refusedBy(err error, s *tee.Spec, facts *plan.Facts) ([]check.Result, *Plan, error) {
	r, ok := check.Of(err)
	if !ok {
		return nil, nil, err
	}
	results := []check.Result{r}
	if s == nil || len(s.Asked()) > 1 {
		return results, nil, nil
	}
	g, _ := s.For(s.Asked()[0])
	rest := check.Spec(g)
	if facts != nil {
		rest = check.Host(g, facts)
	}
	return slices.Concat(results, check.Except(rest, r.ID)), nil, nil
}
