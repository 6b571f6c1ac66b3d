package launcher

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Severity is what a failed check means.
type Severity string

// Severities.
const (
	Refuse  Severity = "refuse"  // the VM is not started
	Warn    Severity = "warn"    // it is started, and people should know
	Default Severity = "default" // the launcher sets this by itself; failed, it refuses
)

// Verdict is the result of a check.
type Verdict string

// Verdicts.
const (
	CheckOK            Verdict = "ok"
	CheckFailed        Verdict = "failed"
	CheckUnknown       Verdict = "unknown" // this user cannot read what it takes to tell
	CheckNotApplicable Verdict = "not-applicable"
)

// Check is one sanity check: a row of the table of checks.
type Check struct {
	ID       string   `json:"id"`
	Severity Severity `json:"severity"`
	Cause    string   `json:"cause"` // what is wrong if it fails
	Fix      string   `json:"fix"`
	Source   string   `json:"source"` // who says so

	stage  stage
	ofSpec bool   // the spec asks for too much, and not the host offers too little
	ofHost bool   // the other way round, where a plan has to be there first
	key    string // of the spec, for errors
	when   func(*subject) bool
	look   func(*subject) (Verdict, string)
}

// CheckResult is a check and what it found.
type CheckResult struct {
	Check
	Verdict Verdict `json:"verdict"`
	Detail  string  `json:"detail,omitempty"`
}

// Refuses says whether the result keeps a VM from being started.
func (r CheckResult) Refuses() bool { return r.Verdict == CheckFailed && r.Severity != Warn }

// OfHost says whether it is about the host, and not about the spec.
func (r CheckResult) OfHost() bool { return r.ofHost || r.stage == hostStage && !r.ofSpec }

// stage says what a check needs to know.
type stage int

const (
	specStage stage = iota // the spec
	hostStage              // and the host, its QEMU and its slots
	planStage              // and the plan with its firmware
)

// subject is what checks look at. facts is nil in the first stage, plan in the
// first two.
type subject struct {
	spec     *Spec
	facts    *Facts
	plan     *Plan
	tech     technology
	options  *options
	firmware *firmwareFacts // nil if it could not be read
}

// Checks returns the table, in the order in which checks are made.
func Checks() []Check {
	return slices.Concat(specChecks, deviceChecks, hostChecks, planChecks)
}

func (c *Check) run(s *subject) CheckResult {
	r := CheckResult{Check: *c, Verdict: CheckNotApplicable}
	if c.when == nil || c.when(s) {
		r.Verdict, r.Detail = c.look(s)
	}
	return r
}

// checkSecure makes the checks that need the spec alone.
func (s *Spec) checkSecure() error {
	tech, _ := technologyByName(s.tech)
	for _, r := range runChecks(&subject{spec: s, tech: tech}, specStage) {
		if r.Refuses() {
			return s.checkError(r)
		}
	}
	return nil
}

func (s *Spec) checkError(r CheckResult) error {
	msg := r.Detail
	if msg == "" {
		msg = r.Cause
	} else if !strings.Contains(msg, " ") { // only what it is about
		msg += ": " + r.Cause
	}
	return &SpecError{File: s.file, Key: r.key, Msg: msg, Check: r.ID, Fix: r.Fix}
}

// CheckPlan makes all checks of a plan, on the facts that it was made from.
func CheckPlan(p *Plan) []CheckResult {
	s := &subject{spec: p.spec, facts: &p.facts, plan: p, tech: p.tech, options: parseOptions(p.Argv[len(p.facts.Emulator):])}
	s.firmware = readFirmwareFacts(p)
	return runChecks(s, planStage)
}

func runChecks(s *subject, last stage) []CheckResult {
	var results []CheckResult
	for _, c := range Checks() {
		if c.stage <= last {
			results = append(results, c.run(s))
		}
	}
	return results
}

// CheckError is a plan that checks refuse.
type CheckError struct {
	File   string
	Failed []CheckResult
}

func (e *CheckError) Error() string {
	r := e.Failed[0]
	text := fmt.Sprintf("%s: check %s: %s", e.File, r.ID, r.Cause)
	if r.Detail != "" {
		text += " (" + r.Detail + ")"
	}
	if n := len(e.Failed) - 1; n > 0 {
		text += fmt.Sprintf("; %d more", n)
	}
	return text
}

// NameTaken says whether nothing but another VM of the name is in the way.
func (e *CheckError) NameTaken() bool { return len(e.Failed) == 1 && e.Failed[0].ID == nameFree }

// OfHost says whether the host alone is in the way.
func (e *CheckError) OfHost() bool {
	return !slices.ContainsFunc(e.Failed, func(r CheckResult) bool { return !r.OfHost() })
}

// Unwrap makes a host's failure an ErrHost.
func (e *CheckError) Unwrap() error {
	if e.OfHost() {
		return ErrHost
	}
	return nil
}

// approve makes all checks of a plan. It returns the warnings, and an error if a
// check refuses the plan.
func approve(p *Plan) (warnings []CheckResult, err error) {
	results := CheckPlan(p)
	for _, r := range results {
		if r.Verdict == CheckFailed && !r.Refuses() {
			warnings = append(warnings, r)
		}
	}
	return warnings, Refusal(p.spec.file, results)
}

// Replaceable is the error of a plan that could not take the place of a running VM
// of its name: what that VM has, such as its slot, will be free.
func (p *Plan) Replaceable() error {
	if err := p.CheckFiles(); err != nil {
		return err
	}
	return Refusal(p.spec.file, slices.DeleteFunc(CheckPlan(p), func(r CheckResult) bool {
		return slices.Contains([]string{nameFree, freeSlots, freeHugePages, memoryAvailable}, r.ID)
	}))
}

// Refusal is the error of results of which some refuse; nil if none does.
func Refusal(file string, results []CheckResult) error {
	var failed []CheckResult
	for _, r := range results {
		if r.Refuses() {
			failed = append(failed, r)
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return &CheckError{File: file, Failed: failed}
}

// CheckSpec makes all checks that can be made of a spec file on a host, also where
// it is refused early: what refuses it is then among the results, and plan is nil.
func CheckSpec(file string, gather func(*Spec) (Facts, error), plan func(*Spec, Facts) (*Plan, error)) ([]CheckResult, *Plan, error) {
	spec, err := LoadSpec(file)
	if err != nil {
		return refusedBy(err, file, nil)
	}
	facts, err := gather(spec)
	if err != nil {
		return refusedBy(err, file, nil)
	}
	p, err := plan(spec, facts)
	if err != nil {
		return refusedBy(err, file, &facts)
	}
	return CheckPlan(p), p, nil
}

// refusedBy puts the error that refuses a spec before the results of the checks
// that can be made all the same.
func refusedBy(err error, file string, facts *Facts) ([]CheckResult, *Plan, error) {
	r, ok := resultOf(err)
	if !ok {
		return nil, nil, err
	}
	rest := slices.DeleteFunc(others(file, facts), func(o CheckResult) bool { return o.ID == r.ID })
	return append([]CheckResult{r}, rest...), nil, nil
}

// others makes the checks of a spec that cannot be carried out: those of the spec,
// and of the host if it was looked at. Of several technologies none is more right
// than another.
func others(file string, facts *Facts) []CheckResult {
	spec, err := loadSpec(file, readSpec)
	if err != nil || len(spec.asked) > 1 {
		return nil
	}
	spec.fillFor(spec.asked[0])
	tech, _ := technologyByName(spec.tech)
	last := specStage
	if facts != nil {
		last = hostStage
	}
	return runChecks(&subject{spec: spec, facts: facts, tech: tech}, last)
}

// resultOf makes a result of an error that refuses a spec.
func resultOf(err error) (CheckResult, bool) {
	var spec *SpecError
	var host *HostError
	var choice *ChoiceError
	var file *FileError
	r := CheckResult{Verdict: CheckFailed}
	switch {
	case errors.As(err, &choice):
		r.Check = Check{ID: "technology", Severity: Refuse, Cause: "no technology of those asked for is possible", Fix: "the reasons say what each lacks", Source: "this host, QEMU and the images"}
		if choice.OfHost() {
			r.stage = hostStage
		}
		r.Detail = choice.Error()
	case errors.As(err, &file):
		r.be("files-readable")
		r.Detail = file.Error()
	case errors.As(err, &spec):
		r.Check = Check{ID: "spec", Severity: Refuse, Cause: "the spec cannot be carried out", Fix: `correct the spec: "vmlatch help spec" describes it`, Source: "vmlatch help spec"}
		r.be(spec.Check)
		if spec.Fix != "" {
			r.Fix = spec.Fix
		} else if spec.Near != "" {
			r.Fix = fmt.Sprintf("did you mean %q?", spec.Near)
		}
		r.Detail = spec.Error()
	case errors.As(err, &host):
		r.Check = Check{ID: "host", Severity: Refuse, Cause: "this host cannot " + host.Want, Fix: host.Fix, Source: "vmlatch host", stage: hostStage}
		r.be(host.Check)
		if host.Fix != "" {
			r.Fix = host.Fix
		}
		r.Detail = host.Why
	case errors.Is(err, ErrHost):
		r.Check = Check{ID: "host", Severity: Refuse, Cause: "this host cannot do it", Fix: `"vmlatch host" shows what it can do`, Source: "vmlatch host", stage: hostStage}
		r.Detail = err.Error()
	default:
		return r, false
	}
	return r, true
}

// be makes a result that of a check of the table, if there is one of the id.
func (r *CheckResult) be(id string) {
	for _, c := range Checks() {
		if c.ID == id {
			r.Check = c
		}
	}
}

func verdict(ok bool, format string, args ...any) (Verdict, string) {
	if ok {
		return CheckOK, ""
	}
	return CheckFailed, fmt.Sprintf(format, args...)
}
