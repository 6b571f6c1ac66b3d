package tee

import (
	"fmt"

	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/plan"
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
	OK            Verdict = "ok"
	Failed        Verdict = "failed"
	Unknown       Verdict = "unknown" // this user cannot read what it takes to tell
	NotApplicable Verdict = "not-applicable"
)

// Fixes that several checks have.
const (
	Defect = "this is a defect of vmlatch: please report it"

	newerKernel = "install a newer kernel"
)

// Check is one sanity check. Package check has the table of all of them, and makes
// them.
type Check struct {
	ID       string   `json:"id"`
	Severity Severity `json:"severity"`
	Cause    string   `json:"cause"` // what is wrong if it fails
	Fix      string   `json:"fix"`
	Source   string   `json:"source"` // who says so

	Stage  Stage                            `json:"-"`
	OfSpec bool                             `json:"-"` // the spec asks for too much; the host does not offer too little
	OfHost bool                             `json:"-"` // the other way round, where a plan has to be there first
	Key    string                           `json:"-"` // of the spec, for errors
	When   func(*Subject) bool              `json:"-"` // whether it applies; nil: always
	Look   func(*Subject) (Verdict, string) `json:"-"`
}

// Stage is what a check needs to know.
type Stage int

// Stages.
const (
	SpecStage Stage = iota // the spec
	HostStage              // and the host, its QEMU and its slots
	PlanStage              // and the plan with its firmware
)

// Subject is what checks look at. Facts are nil in the first stage, Plan and Options
// in the first two.
type Subject struct {
	*Guest
	Facts   *plan.Facts
	Plan    *plan.Plan
	Options *plan.Options // the plan's command line, as QEMU would read it
	Image   *plan.Image   // the plan's firmware; nil if it could not be read
}

// Checks lists the checks that technologies bring.
func Checks() (list []Check) {
	for _, t := range all() {
		list = append(list, t.checks()...)
	}
	return list
}

// Verify is OK or Failed, with what is wrong.
func Verify(ok bool, format string, args ...any) (Verdict, string) {
	if ok {
		return OK, ""
	}
	return Failed, fmt.Sprintf(format, args...)
}

// Answered turns the host's answer into a verdict.
func Answered(a, want host.Answer, format string, args ...any) (Verdict, string) {
	if a == host.Unknown {
		return Unknown, "cannot be read by this user"
	}
	return Verify(a == want, format, args...)
}

// ReadImage looks at the firmware, if it could be read.
func (s *Subject) ReadImage(look func(*plan.Image) (Verdict, string)) (Verdict, string) {
	if s.Image == nil {
		return Unknown, "the image cannot be read"
	}
	return look(s.Image)
}

// Real is for checks of confidential guests about this host: what is emulated needs
// nothing of it.
func Real(s *Subject) bool { return s.Traits().Confidential && !s.Facts.Emulated() }

// OnHardware is for checks of what the vendor's processors have; that the host has
// one is another check.
func OnHardware(when func(*Subject) bool) func(*Subject) bool {
	return func(s *Subject) bool { return Real(s) && when(s) && s.tech.hasVendor(s.Facts.Host) }
}
