package launcher

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// AnyConfidential stands for every technology that can prove what was loaded, the
// strongest first.
const AnyConfidential = "any-confidential"

var anyConfidential = []string{TechnologySNP, TechnologyTDX, TechnologySEVES, TechnologySEV}

// readTechnologies reads a name, a list of names, or any-confidential.
func (s *Spec) readTechnologies() error {
	const key = "confidential.technology"
	var names []string
	switch v := s.Confidential.Technology.(type) {
	case string:
		names = []string{v}
		if v == AnyConfidential {
			names = slices.Clone(anyConfidential)
		}
	case []any:
		for _, e := range v {
			name, ok := e.(string)
			if !ok {
				return s.errorf(key, "%v: must be a name or a list of names", v)
			}
			names = append(names, name)
		}
	default:
		return s.errorf(key, "%v: must be a name or a list of names", v)
	}
	if len(names) == 0 {
		return s.errorf(key, "is an empty list")
	}
	for i, n := range names {
		if len(names) > 1 && (n == TechnologyNone || n == AnyConfidential) {
			return s.errorf(key, "%q stands alone: a guest that may run without protection, or under any, needs no list", n)
		}
		if _, ok := technologyByName(n); !ok {
			return s.errorf(key, "%q: must be one of %s, %s, or a list of them", n, strings.Join(Technologies(), ", "), AnyConfidential)
		}
		if slices.Contains(names[:i], n) {
			return s.errorf(key, "%q stands there twice", n)
		}
	}
	s.asked = names
	return nil
}

// with returns the spec as it is for one technology, checked.
func (s *Spec) with(technology string) (*Spec, error) {
	c := *s
	c.fillFor(technology)
	t, _ := technologyByName(technology)
	if err := t.validate(&c); err != nil {
		return &c, err
	}
	return &c, c.checkSecure()
}

// unfilled is the spec as it was read, for another technology than its own.
func (s *Spec) unfilled() *Spec {
	if s.raw == nil {
		return s
	}
	c := *s.raw
	c.Name = s.Name // which callers may change
	return &c
}

// settle fills a spec in for its only technology. Of several each must make sense,
// for what does not must not lead to a weaker one; the host decides between them.
func (s *Spec) settle() error {
	raw := *s
	if len(s.asked) == 1 {
		c, err := s.with(s.asked[0])
		*s = *c
		s.raw = &raw
		if err != nil && !s.set["confidential.technology"] && len(s.Disks) > 0 {
			s.pending, err = err, nil // a disk image may ask for a technology
		}
		return err
	}
	for _, name := range s.asked {
		if _, err := s.with(name); err != nil {
			var spec *SpecError
			if errors.As(err, &spec) {
				spec.Msg = "for " + name + ": " + spec.Msg
				if spec.Fix == "" {
					spec.Fix = fmt.Sprintf("what only %s needs goes into [confidential.%s]: policy, cpu, until", name, name)
				}
			}
			return err
		}
	}
	return nil
}

// Rejection is a technology that was not chosen, and why.
type Rejection struct {
	Technology string
	Err        error
}

// ChoiceError means that no technology of those asked for is possible.
type ChoiceError struct {
	File     string
	Rejected []Rejection
}

func (e *ChoiceError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: none of the technologies works:", e.File)
	for _, r := range e.Rejected {
		fmt.Fprintf(&b, "\n  %s: %s", r.Technology, bare(r.Err))
	}
	return b.String()
}

// OfHost says whether it is the host alone that is in the way.
func (e *ChoiceError) OfHost() bool {
	return !slices.ContainsFunc(e.Rejected, func(r Rejection) bool { return !errors.Is(r.Err, ErrHost) })
}

// Unwrap returns the reasons.
func (e *ChoiceError) Unwrap() []error {
	errs := make([]error, len(e.Rejected))
	for i, r := range e.Rejected {
		errs[i] = r.Err
	}
	return errs
}

// bare leaves out of an error what a list of errors says once.
func bare(err error) string {
	var spec *SpecError
	if errors.As(err, &spec) {
		return spec.Key + ": " + spec.Msg
	}
	return strings.TrimPrefix(err.Error(), ErrHost.Error()+": ")
}

// candidates are the technologies to try in their order, and who asked for them:
// the spec, or an image where the spec asks for nothing.
func (s *Spec) candidates(f *Facts) (names []string, from string, err error) {
	names, from = s.asked, s.From("confidential.technology")
	if !s.set["confidential.technology"] {
		if demanded, image := demanded(f.Sidecars); demanded != nil {
			names, from = demanded, "demanded by "+image
		} else if s.pending != nil {
			return nil, "", s.pending
		}
	}
	for _, o := range []string{TechnologySEV, TechnologySEVES, TechnologySNP, TechnologyTDX} {
		if only := s.onlyFor(o); !only.empty() && !slices.Contains(names, o) {
			return nil, "", s.errorf("confidential."+o, "is for a technology that nobody asks for here (%s)", strings.Join(names, ", "))
		}
	}
	if len(names) > 1 {
		from = "the first of " + strings.Join(names, ", ") + " that works here (" + from + ")"
	}
	return names, from, nil
}

// choose plans for the first technology of those asked for that images, host and
// QEMU allow. What is wrong with the spec is an error and no reason to take
// another one, which might protect less.
func (s *Spec) choose(f *Facts, build func(*Spec, rundir.Choice) (*Plan, error)) (*Plan, error) {
	names, from, err := s.candidates(f)
	if err != nil {
		return nil, err
	}
	several := len(names) > 1
	var rejected []Rejection
	for _, name := range names {
		c, err := s.unfilled().with(name)
		if err != nil {
			return nil, err
		}
		why := c.satisfy(f.Sidecars)
		if why == nil {
			why = c.fits(f, several)
		}
		if why == nil {
			choice := rundir.Choice{What: "technology", Value: name, From: from}
			for _, r := range rejected {
				choice.From += fmt.Sprintf("; not %s: %s", r.Technology, bare(r.Err))
			}
			plan, err := build(c, choice)
			if err == nil && several {
				err = c.refusedByHost(f)
			}
			if err == nil || !errors.Is(err, ErrHost) {
				return plan, err
			}
			why = err
		}
		if !several {
			return nil, why
		}
		rejected = append(rejected, Rejection{name, why})
	}
	return nil, &ChoiceError{File: s.file, Rejected: rejected}
}

// refusedByHost makes the checks of a technology that are about the host.
func (s *Spec) refusedByHost(f *Facts) error {
	t, _ := technologyByName(s.tech)
	results := runChecks(&subject{spec: s, facts: f, tech: t}, hostStage)
	// A slot that is taken now may be free in a moment: a start waits for it.
	err := Refusal(s.file, slices.DeleteFunc(results, func(r CheckResult) bool { return r.ID == freeSlots }))
	var refused *CheckError
	if errors.As(err, &refused) && refused.OfHost() {
		return err
	}
	return nil // what else is wrong is said of the plan
}

// fits says why host or QEMU cannot do the spec's technology. among means that
// another one may be taken instead.
func (s *Spec) fits(f *Facts, among bool) error {
	t, _ := technologyByName(s.tech)
	if t.build == nil {
		if f.emulated() {
			return s.errorf("confidential.technology", "none: there is nothing to emulate; start without --emulate")
		}
		return nil
	}
	if !f.emulated() {
		r := f.Host.Technology(s.tech)
		if r.Usable == host.No {
			return &HostError{Want: "encrypt memory with " + s.tech, Why: r.Why, Fix: r.Fix, Check: "technology-usable", Hardware: true}
		}
		if weaker := s.tech == TechnologySEVES || s.tech == TechnologySEV; among && weaker && f.Host.SEV != nil && f.Host.SEV.SNPEnabled == host.Yes {
			return &HostError{Want: "take " + s.tech + " by choice", Why: "the host runs SEV-SNP, beside which it does not count as secure", Fix: "use sev-snp, or name " + s.tech + " alone"}
		}
	}
	if err := s.knows(f, t); err != nil {
		return err
	}
	if among && f.Firmware != nil {
		if missing := f.Firmware.lacks(t, s.KernelHashes()); missing != "" {
			return s.errorf("firmware.image", "%s: %s", s.Firmware.Image, missing)
		}
	}
	return nil
}

// HostError is something that this host cannot do, why, and what helps. It is an
// [ErrHost].
type HostError struct {
	Want, Why, Fix string
	Check          string // the check that this is, if it is one
	Hardware       bool   // an emulated platform would do
}

func (e *HostError) Error() string { return fmt.Sprintf("%v: %s: %s", ErrHost, e.Want, e.Why) }

// Unwrap returns ErrHost.
func (e *HostError) Unwrap() error { return ErrHost }
