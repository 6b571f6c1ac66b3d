package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// event is a line of "go test -json" (go doc test2json).
type event struct {
	Action     string
	Package    string
	ImportPath string
	Test       string
	Output     string
	Elapsed    float64 // seconds
}

type test struct{ pkg, name string }

// log follows the tests of a run.
type log struct {
	w       io.Writer
	allowed reasons
	output  map[test][]string // of tests that go on; of packages under the name ""
	open    map[string]bool   // packages that have not ended

	passed, failed, skipped int
	broken                  bool     // a package failed, or did not end
	unlisted                []string // skips
	times                   []took
}

// took is how long a test took, with those below it.
type took struct {
	test
	seconds float64
}

func newLog(w io.Writer, allowed reasons) *log {
	return &log{w: w, allowed: allowed, output: map[test][]string{}, open: map[string]bool{}}
}

// read takes the events until the stream ends. Lines that are not events are shown
// as they are.
func (l *log) read(r io.Reader) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		var e event
		if strings.HasPrefix(line, "{") && json.Unmarshal([]byte(line), &e) == nil {
			l.add(e)
		} else {
			fmt.Fprint(l.w, line)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (l *log) add(e event) {
	t := test{e.Package, e.Test}
	switch e.Action {
	case "start":
		l.open[e.Package] = true
	case "output":
		l.output[t] = append(l.output[t], e.Output)
		if e.Test == "" && closing(e.Output) {
			fmt.Fprint(l.w, e.Output)
		}
	case "build-output":
		fmt.Fprint(l.w, e.Output)
	case "build-fail":
		l.broken = true
	case "pass", "fail", "skip":
		l.end(e.Action, t)
		if t.name != "" && !strings.Contains(t.name, "/") {
			l.times = append(l.times, took{t, e.Elapsed})
		}
		delete(l.output, t)
	}
}

// closing reports whether a line is go test's last of a package.
func closing(line string) bool {
	for _, start := range []string{"ok  \t", "FAIL\t", "?   \t", "---\t"} {
		if strings.HasPrefix(line, start) {
			return true
		}
	}
	return false
}

func (l *log) end(action string, t test) {
	if t.name == "" {
		delete(l.open, t.pkg)
		if action == "fail" {
			l.broken = true
			for open := range l.output {
				if open.pkg == t.pkg { // the package itself, and tests that did not end
					l.show(open)
				}
			}
		}
		return
	}
	switch action {
	case "pass":
		l.passed++
	case "fail":
		l.failed++
		l.show(t)
	case "skip":
		l.skipped++
		if why := reason(l.output[t]); !l.allowed.match(why) {
			l.unlisted = append(l.unlisted, fmt.Sprintf("%s %s: %s", t.pkg, t.name, why))
		}
	}
}

// show prints what a test or a package wrote, but for lines that are shown already
// and those that say that a test goes on.
func (l *log) show(t test) {
	for _, line := range l.output[t] {
		if !closing(line) && !strings.HasPrefix(line, "=== ") {
			fmt.Fprint(l.w, line)
		}
	}
}

// finish prints the end and reports whether all is well.
func (l *log) finish() bool {
	for pkg := range l.open {
		l.broken = true
		l.show(test{pkg, ""})
		fmt.Fprintf(l.w, "FAIL\t%s\t(did not end)\n", pkg)
	}
	for _, s := range l.unlisted {
		fmt.Fprintln(l.w, "skipped for a reason that is not listed:", s)
	}
	l.slowest()
	ok := !l.broken && l.failed == 0 && len(l.unlisted) == 0 && l.passed > 0
	if !ok {
		fmt.Fprintln(l.w, "FAIL")
	}
	fmt.Fprintf(l.w, "%d passed, %d failed, %d skipped\n", l.passed, l.failed, l.skipped)
	return ok
}

// slowest prints the tests that a faster run has to begin with.
func (l *log) slowest() {
	slices.SortFunc(l.times, func(a, b took) int { return cmp.Compare(b.seconds, a.seconds) })
	for i, t := range l.times {
		if i == 12 || t.seconds < 10 {
			break
		}
		fmt.Fprintf(l.w, "slow: %4.0f s %s\n", t.seconds, t.name)
	}
}

var place = regexp.MustCompile(`^\s*[\w.-]+\.go:\d+: `)

// reason is the last thing that a skipped test logged, of all lines.
func reason(output []string) string {
	why := ""
	for _, line := range output {
		if strings.HasPrefix(line, "=== ") || strings.HasPrefix(strings.TrimSpace(line), "--- SKIP") {
			continue
		}
		if at := place.FindString(line); at != "" {
			why = line[len(at):]
		} else if why != "" {
			why += line
		}
	}
	return strings.TrimSpace(why)
}
