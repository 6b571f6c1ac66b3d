package tee

import (
	"cmp"

	"github.com/vmlatch/vmlatch/launcher/plan"
)

// none protects nothing: a plain VM.
type none struct{ base }

func (none) traits() plan.Traits {
	return plan.Traits{Name: "none", Unmeasured: "a plain VM is not measured"}
}

func (none) complete(g *Guest) error {
	if g.Latch.Until == "" {
		g.Latch.Until = plan.UntilNone
	}
	if err := cmp.Or(g.foreign(), g.noBroker()); err != nil {
		return err
	}
	if g.Latch.Until != plan.UntilNone {
		return g.File.Errorf("latch.until", "%q: a plain VM is not measured, so nothing can open a latch",
			g.Latch.Until)
	}
	return nil
}

func (none) knows(g *Guest, f *plan.Facts) error {
	if f.Emulated() {
		return g.File.Errorf("confidential.technology", "none: there is nothing to emulate; start without --emulate")
	}
	return nil
}
