package check

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// Result is a check and what it found.
type Result struct {
	tee.Check
	Verdict tee.Verdict `json:"verdict"`
	Detail  string      `json:"detail,omitempty"`
}

// Refuses reports whether the result keeps a VM from being started.
func (r Result) Refuses() bool { return r.Verdict == tee.Failed && r.Severity != tee.Warn }

// IsHost reports whether it is about the host, and not about the spec.
func (r Result) IsHost() bool { return r.OfHost || r.Stage == tee.HostStage && !r.OfSpec }

// Table returns all checks, in the order in which they are made.
func Table() []tee.Check { return slices.Clone(table()) }

// table is made once: a start needs it several times.
var table = sync.OnceValue(func() []tee.Check {
	all := slices.Concat(specChecks(), deviceChecks(), pciChecks(), hostChecks(), planChecks(), nameChecks(),
		brokerChecks(), tpmChecks(), diskChecks(),
		tee.Checks())
	slices.SortStableFunc(all, func(a, b tee.Check) int { return rank(a.ID) - rank(b.ID) })
	return all
})

// rank is a check's place. One that order does not list comes last.
func rank(id string) int {
	if i := slices.Index(order[:], id); i >= 0 {
		return i
	}
	return len(order)
}

func run(s *tee.Subject, last tee.Stage) []Result {
	var results []Result
	for _, c := range table() {
		if c.Stage > last {
			continue
		}
		r := Result{Check: c, Verdict: tee.NotApplicable}
		if c.When == nil || c.When(s) {
			r.Verdict, r.Detail = c.Look(s)
		}
		results = append(results, r)
	}
	return results
}

// Spec makes the checks that need the spec alone.
func Spec(g *tee.Guest) []Result { return run(&tee.Subject{Guest: g}, tee.SpecStage) }

// Host makes those of the spec, and those of the host and its QEMU.
func Host(g *tee.Guest, f *plan.Facts) []Result {
	return run(&tee.Subject{Guest: g, Facts: f}, tee.HostStage)
}

// Plan makes all checks of a plan, on the facts that it was made from.
func Plan(g *tee.Guest, p *plan.Plan) []Result {
	s := &tee.Subject{Guest: g, Facts: p.Facts, Plan: p, Options: plan.ParseOptions(p.QEMUArgv())}
	if image := p.Inputs().Firmware; image != "" {
		s.Image = tee.ReadImage(image)
	}
	return run(s, tee.PlanStage)
}

// SpecError is the error of the first result that refuses a spec; nil if none does.
func SpecError(g *tee.Guest, results []Result) error {
	i := slices.IndexFunc(results, Result.Refuses)
	if i < 0 {
		return nil
	}
	r := results[i]
	msg := r.Detail
	if msg == "" {
		msg = r.Cause
	} else if !strings.Contains(msg, " ") { // only what it is about
		msg += ": " + r.Cause
	}
	e := g.File.Errorf(r.Key, "%s", msg)
	e.Check, e.Fix = r.ID, r.Fix
	return e
}

// Error is the error of results of which some refuse; nil if none does.
func Error(file string, results []Result) error {
	var failed []Result
	for _, r := range results {
		if r.Refuses() {
			failed = append(failed, r)
		}
	}
	if len(failed) == 0 {
		return nil
	}
	first := failed[0]
	text := fmt.Sprintf("check %s: %s", first.ID, first.Cause)
	if first.Detail != "" {
		text += " (" + first.Detail + ")"
	}
	if n := len(failed) - 1; n > 0 {
		text += fmt.Sprintf("; %d more", n)
	}
	var fixes []string
	for _, r := range failed {
		fixes = append(fixes, r.ID+": "+r.Fix)
	}
	return &fault.Error{
		Kind: kind(failed), File: file, Err: errors.New(text), Check: first.ID,
		Fix: strings.Join(append(fixes, `"vmlatch check FILE" shows all checks`), "\n"),
	}
}

// kind tells what the results that refuse have in common.
func kind(failed []Result) fault.Kind {
	switch {
	case len(failed) == 1 && failed[0].ID == NameFree:
		return fault.NameTaken
	case !slices.ContainsFunc(failed, func(r Result) bool { return !r.IsHost() }):
		return fault.Host
	}
	return fault.Spec
}

// Only reports whether one check alone refuses.
func Only(results []Result, id string) bool {
	var refusing []string
	for _, r := range results {
		if r.Refuses() {
			refusing = append(refusing, r.ID)
		}
	}
	return len(refusing) == 1 && refusing[0] == id
}

// Except leaves out the results of some checks.
func Except(results []Result, ids ...string) []Result {
	return slices.DeleteFunc(slices.Clone(results), func(r Result) bool { return slices.Contains(ids, r.ID) })
}

// Of makes a result of an error that refuses a spec before there is a plan. It
// reports whether the error is one.
func Of(err error) (Result, bool) {
	e := fault.As(err)
	if e == nil || e.Kind != fault.Spec && e.Kind != fault.Host {
		return Result{}, false
	}
	r := Result{Verdict: tee.Failed}
	if e.Kind == fault.Spec {
		r.Check = tee.Check{
			ID: "spec", Severity: tee.Refuse, Cause: "the spec cannot be carried out",
			Fix: `correct the spec: "vmlatch help spec" describes it`, Source: "vmlatch help spec",
		}
		r.Detail = e.Error()
	} else {
		r.Check = tee.Check{
			ID: "host", Severity: tee.Refuse, Stage: tee.HostStage, Cause: fault.ErrHost.Error() + " " + e.Op,
			Fix: `"vmlatch host" shows what it can do`, Source: "vmlatch host",
		}
		r.Detail = e.Err.Error()
	}
	r.use(e.Check)
	if e.Check == Technology {
		r.Detail = e.Error()
	} else if e.Fix != "" && e.Check != FilesReadable {
		r.Fix = e.Fix
	}
	return r, true
}

// use fills the check in from the table, if the id is in it.
func (r *Result) use(id string) {
	if id == Technology {
		r.ID, r.Cause = id, "no technology of those asked for is possible"
		r.Fix, r.Source = "the reasons say what each lacks", "this host, QEMU and the images"
	}
	for _, c := range table() {
		if c.ID == id {
			r.Check = c
		}
	}
}

// Warns reports whether the result is a warning.
func (r Result) Warns() bool { return r.Verdict == tee.Failed && r.Severity == tee.Warn }
