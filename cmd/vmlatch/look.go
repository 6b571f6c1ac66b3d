package main

import (
	"fmt"
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
}

func describe(root rundir.Root, e *rundir.Entry) vmInfo {
	v := vmInfo{Name: e.Name, Status: e.Status(), Record: publish(e.Record), State: string(launcher.Launching)}
	if e.Record != nil && v.Status != rundir.Launching {
		v.State = e.Record.State
	}
	if v.Status == rundir.Ended {
		v.State = string(launcher.Stopped)
		v.Exit, v.Ended = ending(root, e.Name)
	}
	return v
}

// ending is how and when a VM ended, if its logs tell.
func ending(root rundir.Root, name string) (*launcher.Exit, *time.Time) {
	d, _, err := root.FindLogs(name)
	if err != nil {
		return nil, nil
	}
	defer d.Close()
	log, err := d.OpenLog(rundir.EventsLog, false)
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

func newPS(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name:        "ps",
		Usage:       "list VMs",
		Category:    catLook,
		Description: "Examples:\n\n   vmlatch ps\n   vmlatch ps --all --json",
		Flags: hostFlags(jsonFlag(),
			&urfave.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "also VMs that have ended"},
			&urfave.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "only names"},
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
			list := []vmInfo{}
			for _, e := range entries {
				list = append(list, describe(root, e))
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
			return printVMs(s, list)
		},
	}
}

func printVMs(s *cli.IO, list []vmInfo) error {
	t := s.Table(3)
	fmt.Fprintln(t, "NAME\tSTATE\tTECHNOLOGY\tLATCH\tMEMORY\tCPUS\tSTARTED")
	for _, v := range list {
		technology, latch, memory, cpus, started := "-", "-", "-", "-", "-"
		if r := v.Record; r != nil {
			technology = cli.Escape(r.Technology)
			if r.Emulated {
				technology += " (emulated)"
			}
			latch, memory, cpus = cli.Escape(latchWord(r.Latch)), cli.Escape(r.Memory), fmt.Sprint(r.CPUs)
			started = r.Started.Local().Format("2006-01-02 15:04:05")
		}
		state := v.State
		if v.Exit != nil {
			state += " (" + v.how() + ")"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", v.Name, cli.Escape(state), technology, latch, memory, cpus,
			started)
	}
	return t.Flush()
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
		ArgsUsage:    "NAME",
		Category:     catLook,
		BashComplete: completeNames,
		Description:  "Examples:\n\n   vmlatch inspect guest\n   vmlatch inspect --json guest",
		Flags:        hostFlags(jsonFlag()),
		Action: func(c *urfave.Context) error {
			root, d, e, err := findVM(c, s)
			if err != nil {
				return err
			}
			defer d.Close()
			v := describe(root, e)
			if c.Bool("json") {
				return s.JSON(v)
			}
			return printVM(s, d, v)
		},
	}
}

func printVM(s *cli.IO, d *rundir.Dir, v vmInfo) error {
	t := s.Table(2)
	row := func(key, format string, args ...any) {
		fmt.Fprintf(t, "%s\t%s\n", key, cli.Escape(fmt.Sprintf(format, args...)))
	}
	row("name", "%s", v.Name)
	row("status", "%s, %s", v.Status, v.State)
	if v.Exit != nil {
		row("ended by", "%s", v.how())
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

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
