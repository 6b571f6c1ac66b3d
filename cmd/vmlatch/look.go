package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// vmInfo is one VM as ps and inspect print it.
type vmInfo struct {
	Name   string         `json:"name"`
	Status rundir.Status  `json:"status"` // alive, launching, ended
	State  string         `json:"state"`  // paused, measured, provisioned, running, …
	Exit   *launcher.Exit `json:"exit,omitempty"`
	Ended  *time.Time     `json:"ended,omitempty"`
	Record *record        `json:"record,omitempty"`
	// NoTPM is whether its TPM has ended: its next reset ends QEMU.
	NoTPM bool `json:"tpm-gone,omitempty"`
	// Trouble is what is wrong with it while it runs, a sentence each.
	Trouble []string `json:"trouble,omitempty"`
	// Confined is what inspect reads of its QEMU's process.
	Confined *confined `json:"confined,omitempty"`
	// Failure is the last start, if it came to nothing; Record is of the run before it.
	Failure *failure `json:"failure,omitempty"`
}

// lostLock is said of a VM whose QEMU let go of the lock that shows its life.
const lostLock = "its QEMU has let go of its lock, which none does by itself: do not trust the guest; stop it"

func describe(ctx context.Context, root rundir.Root, e *rundir.Entry) vmInfo {
	e = afterRelease(ctx, root, e)
	v := vmInfo{
		Name: e.Name, Status: e.Status(), Record: publish(e.Record), State: string(launcher.Launching),
		Failure: publishFailure(e.Failure),
	}
	if e.Record != nil && v.Status != rundir.Launching {
		v.State = e.Record.State
	}
	switch {
	case v.Status == rundir.Ended && e.Failure != nil:
		v.State = string(launcher.Failed)
	case v.Status == rundir.Ended:
		v.State = string(launcher.Stopped)
		v.Exit, v.Ended = ending(ctx, root, e.Name)
	case v.Status == rundir.Alive && mayBe(e) != "":
		v.State = string(mayBe(e))
	case v.Status == rundir.Alive && e.Record != nil:
		v.State, v.Trouble = cpuState(ctx, root, e)
	}
	if v.Status == rundir.Alive && e.Record != nil {
		v.Trouble = append(v.Trouble, launcher.LostDisks(e.Record)...)
		for _, role := range e.Gone() {
			v.NoTPM = v.NoTPM || role == plan.RoleTPM
			if text := launcher.Gone(role); !slices.Contains(v.Trouble, text) {
				v.Trouble = append(v.Trouble, text)
			}
		}
	}
	if e.LostLock {
		v.Trouble = append([]string{lostLock}, v.Trouble...)
	}
	return v
}

// ending is how and when a VM ended, if its logs tell.
func ending(ctx context.Context, root rundir.Root, name string) (*launcher.Exit, *time.Time) {
	log, err := openEvents(ctx, root, name)
	if err != nil {
		return nil, nil
	}
	defer log.Close()
	exit, at, err := launcher.Ending(log)
	if err != nil {
		return nil, nil
	}
	return &exit, &at
}

// openEvents opens the event log of a VM, also of one that has ended.
func openEvents(ctx context.Context, root rundir.Root, name string) (*os.File, error) {
	d, _, err := root.FindLogs(ctx, name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.OpenLog(rundir.EventsLog, false)
}

func newPS(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name:        "ps",
		Usage:       "list VMs",
		Category:    catLook,
		Description: "Examples:\n\n   vmlatch ps\n   vmlatch ps --wide\n   vmlatch ps --all --json",
		Flags: hostFlags(jsonFlag(),
			&urfave.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "also VMs that have ended"},
			&urfave.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "only names"},
			&urfave.BoolFlag{Name: "wide", Aliases: []string{"w"}, Usage: "also disks, networks and forwarded ports"},
			&urfave.BoolFlag{Name: "schema", Usage: "print the JSON Schema of --json"}),
		Action: func(c *urfave.Context) error {
			if _, err := cli.Args(c); err != nil {
				return err
			}
			if c.Bool("schema") {
				_, err := fmt.Fprint(s.Out, topicPSJSON)
				return err
			}
			root, entries, err := listVMs(c, s, c.Bool("all"))
			if err != nil {
				return err
			}
			slices.SortStableFunc(entries, func(a, b *rundir.Entry) int { return naturally(a.Name, b.Name) })
			list := []vmInfo{}
			for _, e := range entries {
				list = append(list, describe(c.Context, root, e))
			}
			switch {
			case c.Bool("json"):
				return s.JSON(map[string]any{"schema": "vmlatch.ps/1", "vms": list})
			case c.Bool("quiet"):
				for _, v := range list {
					fmt.Fprintln(s.Out, v.Name)
				}
				return nil
			}
			return printVMs(s, list, c.Bool("wide"))
		},
	}
}

func printVMs(s *cli.IO, list []vmInfo, wide bool) error {
	t := s.Table(3)
	head, more := "NAME\tSTATE\tTECHNOLOGY\tLATCH\tMEMORY\tCPUS\tUP\tSTARTED", func(*record) string { return "" }
	if wide {
		head += "\tDISKS\tNETWORKS"
		more = (*record).wide
	}
	fmt.Fprintln(t, head)
	for _, v := range list {
		technology, latch, memory, cpus, up, started := "-", "-", "-", "-", "-", "-"
		if r := v.Record; r != nil {
			technology = cli.Escape(r.Technology)
			if r.Emulated {
				technology += " (emulated)"
			}
			latch, memory, cpus = cli.Escape(latchWord(r.Latch)), cli.Escape(r.Memory), fmt.Sprint(r.CPUs)
			started = r.Started.Local().Format(psTime)
			if v.Status != rundir.Ended {
				up = upFor(time.Since(r.Started))
			}
		}
		state := v.State
		switch {
		case v.Exit != nil:
			state += " (" + v.how() + ")"
		case v.Failure != nil && v.Status == rundir.Ended:
			state += " (" + firstWords(v.Failure.Reason) + ")"
			started = v.Failure.At.Local().Format(psTime)
		case len(v.Trouble) > 0:
			state += " (" + firstWords(v.Trouble[0]) + ")"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s%s\n", v.Name, cli.Escape(state), technology, latch, memory,
			cpus, up, started, more(v.Record))
	}
	return t.Flush()
}

// upFor is a time in its two largest units: 12s, 3m5s, 2h10m, 4d3h.
func upFor(d time.Duration) string {
	d = max(0, d).Truncate(time.Second)
	switch day := 24 * time.Hour; {
	case d >= day:
		return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return d.String()
}

// psTime is a time with its zone.
const psTime = "2006-01-02 15:04:05 MST"

// naturally compares names as people count: d2 comes before d10.
func naturally(a, b string) int {
	for a != "" && b != "" {
		x, y := digits(a), digits(b)
		if x == "" || y == "" {
			if a[0] != b[0] {
				return cmp.Compare(a[0], b[0])
			}
			a, b = a[1:], b[1:]
			continue
		}
		a, b = a[len(x):], b[len(y):]
		m, n := strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
		if c := cmp.Or(cmp.Compare(len(m), len(n)), cmp.Compare(m, n), cmp.Compare(len(x), len(y))); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(a), len(b))
}

// digits is the number that a text begins with; "" if it begins with none.
func digits(text string) string { return text[:len(text)-len(strings.TrimLeft(text, "0123456789"))] }

// firstWords shortens a reason for a table; inspect shows all of it.
func firstWords(reason string) string {
	const most = 60
	reason, _, _ = strings.Cut(reason, "\n")
	if r := []rune(reason); len(r) > most {
		reason = string(r[:most-1]) + "…"
	}
	return reason
}

// how a VM ended, and whether it was stopped on purpose.
func (v *vmInfo) how() string {
	if v.Exit.Reason == launcher.ReasonKilled && v.Record != nil &&
		launcher.State(v.Record.State) == launcher.Stopping {
		return "killed by stop"
	}
	return v.Exit.Reason
}

func latchWord(l latchState) string {
	switch {
	case l.Until == plan.UntilNone:
		return "-"
	case l.Proof == launcher.ProofWaits:
		return "broker, not yet"
	case l.Proof == launcher.ProofReleased:
		return "open: released, no receipt"
	case l.Verified:
		return "open: verified"
	case l.Until == plan.UntilIDBlock:
		return "ID block, at release"
	case l.Open:
		return "open: NOT verified"
	}
	return "closed until " + l.Until
}

func newInspect(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name:         "inspect",
		Usage:        "show everything known about a VM",
		ArgsUsage:    "NAME…",
		Category:     catLook,
		BashComplete: completeNames,
		Description:  "Examples:\n\n   vmlatch inspect guest\n   vmlatch inspect --json guest",
		Flags:        hostFlags(jsonFlag()),
		Action: func(c *urfave.Context) error {
			if err := needNames(c); err != nil {
				return err
			}
			root, _, err := vms(c, s)
			if err != nil {
				return err
			}
			list := []vmInfo{}
			for i, name := range c.Args().Slice() {
				d, e, err := root.FindLogs(c.Context, name)
				if err != nil {
					return err
				}
				defer d.Close()
				v := describe(c.Context, root, e)
				v.Confined = lookAt(d, &v)
				if c.Bool("json") {
					list = append(list, v)
					continue
				}
				if i > 0 {
					fmt.Fprintln(s.Out)
				}
				if err := printVM(s, d, v); err != nil {
					return err
				}
			}
			switch {
			case !c.Bool("json"):
				return nil
			case len(list) == 1:
				return s.JSON(list[0])
			}
			return s.JSON(map[string]any{"schema": "vmlatch.ps/1", "vms": list})
		},
	}
}

func printVM(s *cli.IO, d *rundir.Dir, v vmInfo) error {
	t := s.Table(2)
	row := func(key, format string, args ...any) {
		fmt.Fprintf(t, "%s\t%s\n", key, cli.Escape(fmt.Sprintf(format, args...)))
	}
	row("name", "%s", v.Name)
	row("status", "%s, %s", v.Status, v.stateText())
	if v.Exit != nil {
		row("ended by", "%s", v.how())
	}
	if f := v.Failure; f != nil && v.Status == rundir.Ended {
		row("last start", "failed at %s, exit code %d", f.At.Local().Format(time.RFC3339), f.Code)
		row("reason", "%s", f.Reason)
		for _, h := range f.Hints {
			row("hint", "%s", h)
		}
		row("spec", "%s", f.Spec)
		if v.Record != nil {
			row("the run before it", "")
		}
	}
	if r := v.Record; r != nil {
		from := ""
		if len(r.Choices) > 0 {
			from = " (" + r.Choices[0].From + ")"
		}
		row("technology", "%s%s%s", r.Technology, label(r.Emulated), from)
		row("latch", "%s", latchWord(r.Latch))
		if r.SEV != nil {
			if r.SEV.SNPPolicy != 0 {
				row("policy", "%v", r.SEV.SNPPolicy)
			} else {
				row("policy", "%v", r.SEV.Policy)
			}
			row("SEV firmware", "%v", r.SEV.Build)
			row("measured", "%s", yesNo(r.SEV.Measurement != nil))
			row("secret injected", "%s", yesNo(r.SEV.Secret))
		}
		for _, text := range v.Trouble {
			row("trouble", "%s", text)
		}
		row("started", "%s", r.Started.Local().Format(time.RFC3339))
		if r.Released != nil {
			row("released", "%s", r.Released.Local().Format(time.RFC3339))
		}
		if v.Ended != nil {
			row("ended", "%s", v.Ended.Local().Format(time.RFC3339))
		}
		row("spec", "%s", r.Origin.Spec)
		if r.Origin.Unit != "" {
			row("unit", "%s", r.Origin.Unit)
		}
		if v.Status == rundir.Alive {
			row("process", "%d", r.PID)
		}
		row("QEMU version", "%s", r.Version)
		if t := r.TPM; t != nil {
			encrypted, lives := "not encrypted", ""
			if t.Encrypted {
				encrypted = "encrypted"
			}
			if v.NoTPM {
				lives = "; it has GONE: the guest's next reset ends QEMU"
			}
			row("TPM", "%s, %s, %s; the host's word only%s", t.Model, t.State, encrypted, lives)
		}
		for i, d := range r.Disks {
			how := []string{d.Format}
			if d.Bus != "" {
				how = append(how, d.Bus)
			}
			if d.ReadOnly {
				how = append(how, "read-only")
			}
			if d.Ephemeral {
				how = append(how, "changes are dropped")
			}
			row(fmt.Sprintf("disk %d", i+1), "%s (%s)", d.Image, strings.Join(how, ", "))
		}
		for i, n := range r.Networks {
			row(fmt.Sprintf("network %d", i+1), "%s", n.text())
		}
		if r.VSock != 0 {
			row("vsock", "CID %d", r.VSock)
		}
		v.walls(row)
		for i, c := range r.Choices {
			if c.What == "policy" || i == 0 {
				continue // shown above
			}
			row(c.What, "%s (%s)", c.Value, c.From)
		}
	}
	if v.Status != rundir.Ended {
		row("monitor", "%s", d.Path(rundir.MonitorSocket))
		row("console", "%s", d.Path(rundir.ConsoleSocket))
	}
	row("logs", "%s", d.State)
	return t.Flush()
}

// stateText explains the states whose word is not enough.
func (v *vmInfo) stateText() string {
	switch launcher.State(v.State) {
	case launcher.Releasing:
		return "running, or about to: a release was begun, and its outcome is not known"
	case launcher.Provisioning:
		return "measured: a secret was handed over, and whether it was accepted is not known; inject it again"
	case launcher.Proving:
		return "running, without its secret: its owner's broker has not accepted its evidence yet"
	case launcher.Running:
		if v.Record != nil && v.Record.Released == nil {
			return "running, though never released: another program has let it run past its latch"
		}
	case launcher.Paused:
		if v.Record != nil && v.Record.Released != nil {
			return `paused: its CPUs are stopped; "vmlatch resume" lets it go on`
		}
	}
	return v.State
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
