package plan

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Pin is the table [pin]: on which processors of the host the guest's threads run.
type Pin struct {
	CPUs []string `toml:"cpus"` // one list, such as "2-3,8", for each of the guest's CPUs, or one for all
	QEMU string   `toml:"qemu"` // of QEMU's other threads
}

// On reports whether anything is pinned.
func (p *Pin) On() bool { return len(p.CPUs) > 0 || p.QEMU != "" }

func (p *Pin) complete(g *Guest) error {
	switch n := len(p.CPUs); {
	case g.File.Has("pin") && !p.On():
		return g.File.Errorf("pin", "is empty: it needs cpus, or qemu")
	case n > 1 && n != g.CPUs:
		return g.File.Errorf("pin.cpus", "%d lists for %d CPUs: must be one for each, or one for all", n, g.CPUs)
	}
	for _, text := range slices.Concat(p.CPUs, p.texts()) {
		if _, err := ParseCPUs(text); err != nil {
			return g.File.Errorf("pin", "%v", err)
		}
	}
	return nil
}

func (p *Pin) texts() []string {
	if p.QEMU == "" {
		return nil
	}
	return []string{p.QEMU}
}

func (p *Pin) build(b *Builder) error {
	for i, text := range p.CPUs {
		what := "all CPUs"
		if len(p.CPUs) > 1 {
			what = fmt.Sprintf("CPU %d", i)
		}
		b.Choose("pin", what+" on processors "+text, b.Guest.File.From("pin.cpus"))
	}
	if p.QEMU != "" {
		b.Choose("pin", "QEMU's other threads on processors "+p.QEMU, b.Guest.File.From("pin.qemu"))
	}
	return nil
}

// Of is where one of the guest's CPUs runs; nil for anywhere.
func (p *Pin) Of(cpu int) *unix.CPUSet {
	if len(p.CPUs) == 0 {
		return nil
	}
	return setOf(p.CPUs[min(cpu, len(p.CPUs)-1)])
}

// Others is where QEMU's other threads run; nil for anywhere.
func (p *Pin) Others() *unix.CPUSet {
	if p.QEMU == "" {
		return nil
	}
	return setOf(p.QEMU)
}

// Processors are all that are named, sorted.
func (p *Pin) Processors() (all []int) {
	for _, text := range slices.Concat(p.CPUs, p.texts()) {
		list, _ := ParseCPUs(text) // was looked at
		all = append(all, list...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func setOf(text string) *unix.CPUSet {
	list, err := ParseCPUs(text)
	if err != nil { // was looked at
		return nil
	}
	set := &unix.CPUSet{}
	for _, n := range list {
		set.Set(n)
	}
	return set
}

// maxProcessor is the last processor that a set can name (sched_setaffinity(2), CPU_SETSIZE).
const maxProcessor = 1023

// ParseCPUs reads a list of processors, such as 2-3,8 (cpuset(7), "List format").
func ParseCPUs(text string) (list []int, err error) {
	for part := range strings.SplitSeq(text, ",") {
		first, last, ranged := strings.Cut(strings.TrimSpace(part), "-")
		a, err1 := strconv.Atoi(first)
		b := a
		var err2 error
		if ranged {
			b, err2 = strconv.Atoi(last)
		}
		if err1 != nil || err2 != nil || a < 0 || b < a || b > maxProcessor {
			return nil, fmt.Errorf("processors %q: must be a list such as 2-3,8, of 0 to %d", text, maxProcessor)
		}
		for n := a; n <= b; n++ {
			list = append(list, n)
		}
	}
	return list, nil
}
