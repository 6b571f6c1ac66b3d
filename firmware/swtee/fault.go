package swtee

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/nearest"
	"github.com/vmlatch/vmlatch/firmware/sev"
)

// Fault is a failure that the emulated platform produces on purpose, to test programs
// that launch guests.
type Fault struct {
	Command  Command
	From, To int           // which calls of the command, from 1; To 0: all from From on
	Err      error         // a sev.Status or a unix.Errno; nil: the command takes place
	Delay    time.Duration // before the command
	Reset    bool          // the platform loses its guests first
	// Condition is what the evidence shows that the command makes.
	Condition Condition
	text      string
}

// FaultHelp is the syntax that ParseFault accepts.
const FaultHelp = `COMMAND[:N|:N-M|:N+]=WHAT, where WHAT is a firmware status (BAD_MEASUREMENT, 11), ` +
	`an error of the kernel (EBUSY), "reset" or "delay:DURATION"; of reports and quotes also "tcb-behind", ` +
	`of reports "masked" and "vlek", of quotes "no-service"`

// ParseFault reads a fault, such as "LAUNCH_MEASURE=BAD_MEASUREMENT",
// "LAUNCH_UPDATE_DATA:2=RESOURCE_LIMIT", "INIT2=EBUSY", "LAUNCH_MEASURE=reset",
// "LAUNCH_START=delay:300ms".
func ParseFault(s string) (Fault, error) {
	f := Fault{From: 1, text: s}
	left, what, ok := strings.Cut(s, "=")
	if !ok {
		return f, fmt.Errorf("fault %q: write %s", s, FaultHelp)
	}
	name, calls, counted := strings.Cut(left, ":")
	f.Command = Command(name)
	if !slices.Contains(commands, f.Command) {
		return f, fmt.Errorf("fault %q: %w", s, nearest.Unknown("command", name, commandNames()))
	}
	if counted {
		if err := f.parseCalls(calls); err != nil {
			return f, fmt.Errorf("fault %q: %w", s, err)
		}
	}
	if err := f.parseWhat(what); err != nil {
		return f, fmt.Errorf("fault %q: %w", s, err)
	}
	return f, nil
}

func commandNames() []string {
	names := make([]string, len(commands))
	for i, c := range commands {
		names[i] = string(c)
	}
	return names
}

func (f *Fault) parseCalls(s string) (err error) {
	from, to, isRange := strings.Cut(s, "-")
	if open, ok := strings.CutSuffix(s, "+"); ok {
		from = open
	} else if !isRange {
		to = from
	}
	if f.From, err = strconv.Atoi(from); err == nil && to != "" {
		f.To, err = strconv.Atoi(to)
	}
	if err != nil || f.From < 1 || to != "" && f.To < f.From {
		return fmt.Errorf("%q: calls are counted from 1, and written N, N-M or N+", s)
	}
	return nil
}

func (f *Fault) parseWhat(what string) error {
	if what == "reset" {
		f.Reset = true
		return nil
	}
	if d, ok := strings.CutPrefix(what, "delay:"); ok {
		var err error
		if f.Delay, err = time.ParseDuration(d); err != nil || f.Delay < 0 || f.Delay > time.Hour {
			return fmt.Errorf("delay %q: must be a duration with its unit, such as 300ms, of at most 1h", d)
		}
		return nil
	}
	if n, err := strconv.ParseUint(what, 0, 32); err == nil && n > 0 {
		f.Err = sev.Status(n)
		return nil
	}
	words := []string{"reset"}
	for _, c := range conditions[f.Command] {
		if string(c) == what {
			f.Condition = c
			return nil
		}
		words = append(words, string(c))
	}
	for _, st := range sev.Statuses() {
		if st == sev.StatusOK {
			continue // a success is not a fault
		}
		if st.Name() == what {
			f.Err = st
			return nil
		}
		words = append(words, st.Name())
	}
	for e := unix.Errno(1); e < 134; e++ {
		if name := unix.ErrnoName(e); name != "" && name == what {
			f.Err = e
			return nil
		}
	}
	if hint := nearest.Hint(what, words); hint != "" {
		return fmt.Errorf("unknown fault %q: %s", what, hint)
	}
	states := ""
	for _, c := range conditions[f.Command] {
		states += fmt.Sprintf(", %q", c)
	}
	return fmt.Errorf(
		"unknown fault %q: want a firmware status, an errno, \"reset\", \"delay:DURATION\"%s",
		what,
		states,
	)
}

func (f *Fault) hits(cmd Command, n int) bool {
	return f.Command == cmd && n >= f.From && (f.To == 0 || n <= f.To)
}

func (f *Fault) String() string { return f.text }
