package main

import (
	"errors"
	"io"
	"io/fs"

	urfave "github.com/urfave/cli/v2"

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
   vmlatch logs --kind qemu guest`,
		Flags: hostFlags(
			&urfave.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on until the VM ends"},
			&urfave.StringFlag{
				Name:  "kind",
				Value: "console",
				Usage: "which `LOG`: console, events (QMP) or qemu (its messages)",
			},
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
				return nil // nothing was written
			}
			if err != nil {
				return err
			}
			defer f.Close()
			if c.Bool("follow") && e.VMHeld {
				return follow(c.Context, out, f, d, e)
			}
			_, err = io.Copy(out, f)
			return err
		},
	}
}
