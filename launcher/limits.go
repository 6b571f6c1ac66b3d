package launcher

import (
	"errors"

	"github.com/vmlatch/vmlatch/launcher/fault"
)

// attach prepares a control group with the plan's limits, before anything is started, and returns
// what puts QEMU's process into it; nil for a plan that has no limits. QEMU's helpers are not in
// it.
func (s *starter) attach() (func(pid int) error, error) {
	if !s.plan.Guest.Limits.On() {
		return nil, nil
	}
	limits, err := s.plan.Guest.Limits.Of()
	place := s.plan.Facts.Groups
	switch {
	case err != nil:
	case place == nil:
		err = errors.New(s.plan.Facts.NoGroups)
	default:
		err = place.Prepare(limits)
	}
	if err != nil {
		return nil, s.noLimits(err)
	}
	return func(pid int) (err error) {
		s.step("limits")
		if s.machine.rec.Group, err = place.Put(s.ctx, s.plan.Name, limits, pid); err != nil {
			return s.noLimits(err)
		}
		return nil
	}, nil
}

func (s *starter) noLimits(err error) error {
	return &fault.Error{
		Kind: fault.Host, Op: s.plan.Name + ": limits", Err: err,
		Fix: `"vmlatch check" says what this host lacks for [limits]`,
	}
}
