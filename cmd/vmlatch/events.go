package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

func newEvents(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name:         "events",
		Usage:        "print what happened to a VM",
		ArgsUsage:    "NAME",
		Category:     catLook,
		BashComplete: completeNames,
		Description: `QEMU's events, as QEMU names them, including those that went unnoticed when they
happened. Of a VM that has ended the last one is VMLATCH_ENDED, which says how.
--json prints an object on each line: time, event, data. What comes from the guest is
escaped.

Examples:

   vmlatch events guest
   vmlatch events --follow --json guest
   vmlatch events --only SHUTDOWN --only GUEST_PANICKED guest`,
		Flags: hostFlags(
			jsonFlag(),
			&urfave.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on until the VM ends"},
			&urfave.StringSliceFlag{Name: "only", Usage: "only events of this `NAME`; may be repeated"},
			&urfave.StringFlag{
				Name: "since", Usage: "only events after `WHEN`: 10m ago as 10m, or a time such as" +
					" 2026-11-27T03:00:00Z",
			},
			&urfave.BoolFlag{Name: "previous", Usage: "the run before the last"},
		),
		Action: func(c *urfave.Context) error { return runEvents(c, s) },
	}
}

func runEvents(c *urfave.Context, s *cli.IO) error {
	if c.Bool("previous") && c.Bool("follow") {
		return cli.Usagef("--previous and --follow: the run before has ended")
	}
	root, d, e, err := findVM(c, s)
	if err != nil {
		return err
	}
	defer func() { d.Close() }()
	if c.Bool("follow") {
		if d, e, err = settled(c, root, d, e); err != nil {
			return err
		}
	}
	var only []string
	for _, name := range c.StringSlice("only") {
		only = append(only, strings.ReplaceAll(strings.ToUpper(name), "-", "_"))
	}
	since, err := parseSince(c.String("since"))
	if err != nil {
		return err
	}
	emit := func(e launcher.Event) error {
		if e.Time.Before(since) {
			return nil
		}
		if len(only) > 0 && !slices.Contains(only, e.Name) {
			return nil
		}
		return printEvent(s.Out, e, c.Bool("json"))
	}
	f, err := d.OpenLog(rundir.EventsLog, c.Bool("previous"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing happened
	}
	if err != nil {
		return err
	}
	defer f.Close()
	w := &launcher.EventWriter{Emit: emit}
	ended := !e.VMHeld || c.Bool("previous")
	if c.Bool("follow") && e.VMHeld {
		err, ended = follow(c.Context, w, f, d, e), true
	} else {
		_, err = io.Copy(w, f)
	}
	if err != nil || !ended {
		return err
	}
	last, err := launcher.EndedEvent(f)
	if err != nil {
		return err
	}
	return emit(last)
}

// parseSince reads a time, or how long ago it was; "" is the beginning.
func parseSince(text string) (at time.Time, err error) {
	if text == "" {
		return at, nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return time.Now().Add(-ago), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04:05", "2006-01-02 15:04", time.DateOnly} {
		if at, err = time.ParseInLocation(layout, text, time.Local); err == nil {
			return at, nil
		}
	}
	return at, cli.Usagef("--since %s: must be a duration such as 10m, or a time such as 2026-11-27T03:00:00Z", text)
}

// printEvent prints one line.
func printEvent(out io.Writer, e launcher.Event, asJSON bool) error {
	if asJSON {
		b, err := cli.EncodeJSON(e, "")
		if err == nil {
			_, err = fmt.Fprintf(out, "%s\n", b)
		}
		return err
	}
	line := e.Time.Local().Format("2006-01-02 15:04:05.000") + "  " + e.Name
	if len(e.Data) > 0 && string(e.Data) != "{}" {
		line += "  " + string(e.Data)
	}
	_, err := fmt.Fprintln(out, cli.Escape(line))
	return err
}
