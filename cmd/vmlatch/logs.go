package main

import (
	"errors"
	"io"
	"io/fs"
	"os"

	urfave "github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

var logKinds = map[string]string{
	"console": rundir.ConsoleLog, "events": rundir.EventsLog, "qemu": rundir.QEMULog,
}

func newLogs(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name:         "logs",
		Usage:        "print what a VM wrote to its console",
		ArgsUsage:    "NAME",
		Category:     catLook,
		BashComplete: completeNames,
		Description: `Logs are kept after the VM has ended, until its name is used again; --previous
shows those of the run before. A guest's control characters are escaped.

Examples:

   vmlatch logs guest
   vmlatch logs --follow guest
   vmlatch logs --tail 20 guest
   vmlatch logs --kind qemu guest`,
		Flags: hostFlags(
			&urfave.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on until the VM ends"},
			&urfave.StringFlag{
				Name:  "kind",
				Value: "console",
				Usage: "which `LOG`: console, events (QMP) or qemu (its messages)",
			},
			&urfave.IntFlag{Name: "tail", Aliases: []string{"n"}, Value: -1, Usage: "only the last `N` lines"},
			&urfave.BoolFlag{Name: "previous", Usage: "the run before the last"},
			&urfave.BoolFlag{Name: "raw", Usage: "do not escape control characters"},
		),
		Action: func(c *urfave.Context) error {
			file, ok := logKinds[c.String("kind")]
			if !ok {
				return cli.Usagef("--kind %s: must be console, events or qemu", c.String("kind"))
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
			escaped := &cli.EscapeWriter{W: s.Out}
			defer func() { _ = escaped.Flush() }()
			var out io.Writer = escaped
			if c.Bool("raw") {
				out = s.Out
			}
			f, err := d.OpenLog(file, c.Bool("previous"))
			if errors.Is(err, fs.ErrNotExist) {
				sayNothing(s, e)
				return nil
			}
			if err != nil {
				return err
			}
			defer f.Close()
			if n := c.Int("tail"); c.IsSet("tail") {
				if n < 0 {
					return cli.Usagef("--tail %d: must be zero or more", n)
				}
				if err := seekLines(f, n); err != nil {
					return err
				}
			}
			if c.Bool("follow") && e.VMHeld {
				return follow(c.Context, out, f, d, e)
			}
			_, err = io.Copy(out, f)
			return err
		},
	}
}

// sayNothing says that a VM has written nothing, and why if that is known.
func sayNothing(s *cli.IO, e *rundir.Entry) {
	if e.Failure != nil && !e.VMHeld {
		s.Say("%v", startFailed(e))
		return
	}
	s.Say("%s: nothing was written to this log", e.Name)
}

// seekLines goes to where the last lines of a log begin.
func seekLines(f *os.File, lines int) error {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || lines == 0 {
		return err
	}
	const block = 64 << 10
	buf := make([]byte, block)
	for at := end; at > 0; {
		from := max(0, at-block)
		n, err := f.ReadAt(buf[:at-from], from)
		if err != nil && err != io.EOF {
			return err
		}
		for i := n - 1; i >= 0; i-- {
			if buf[i] != '\n' || from+int64(i) == end-1 { // the end of the last line begins no other
				continue
			}
			if lines--; lines == 0 {
				_, err := f.Seek(from+int64(i)+1, io.SeekStart)
				return err
			}
		}
		at = from
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	_, _ = unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA) // over the hole that a cut may have left
	return nil
}
