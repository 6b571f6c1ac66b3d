package tee

import (
	"regexp"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/launcher/plan"
)

// Model is the guest's CPU model without its feature flags.
func (g *Guest) Model() string {
	model, _, _ := strings.Cut(g.CPU, ",")
	return model
}

// Extra are the devices that the spec adds by itself.
func (s *Subject) Extra() []plan.Device {
	var list []plan.Device
	for _, d := range s.Devices {
		p := plan.Texts(d)
		list = append(list, plan.Device{Kind: p["driver"], Props: p})
	}
	return list
}

// Any returns the first extra device whose driver a pattern matches.
func (s *Subject) Any(pattern string) (plan.Device, bool) {
	if len(s.Devices) == 0 {
		return plan.Device{}, false // most guests have none, and need no pattern compiled
	}
	re := regexp.MustCompile("^(?:" + pattern + ")$")
	list := s.Extra()
	i := slices.IndexFunc(list, func(d plan.Device) bool { return re.MatchString(d.Kind) })
	if i < 0 {
		return plan.Device{}, false
	}
	return list[i], true
}

// Without makes a check's look of drivers that must not be there.
func Without(pattern string) func(*Subject) (Verdict, string) {
	return func(s *Subject) (Verdict, string) {
		d, found := s.Any(pattern)
		return Verify(!found, "%s", d.Kind)
	}
}
