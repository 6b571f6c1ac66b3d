package main

import (
	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher"
)

func newScreenshot(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "screenshot", Usage: "save a picture of a VM's screen", ArgsUsage: "NAME FILE",
		Category: catLook, BashComplete: completeAlive,
		Description: `FILE is in PNG; "-" is standard output. The VM must have a screen: [display] in its spec.
Confidential guests have none.

Examples:

   vmlatch screenshot guest screen.png
   vmlatch screenshot guest - | display`,
		Flags: hostFlags(),
		Action: func(c *urfave.Context) error {
			args, err := cli.Args(c, "NAME", "FILE")
			if err != nil {
				return err
			}
			if args[1] == "-" && s.OutIsTerminal() {
				return cli.Usagef("a picture is nothing for a terminal: name a FILE")
			}
			root, _, err := vms(c, s)
			if err != nil {
				return err
			}
			m, err := launcher.Attach(c.Context, root, args[0])
			if err != nil {
				return err
			}
			defer m.Close()
			picture, err := m.Screenshot(c.Context)
			if err != nil {
				return err
			}
			if args[1] == "-" {
				_, err := s.Out.Write(picture)
				return err
			}
			out, err := s.PrepareOutput(args[1], 0o600)
			if err != nil {
				return cli.Fail(cli.ExitUsage, err)
			}
			defer out.Discard()
			return out.Commit(picture)
		},
	}
}
