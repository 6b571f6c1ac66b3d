package main

import (
	"context"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

func newPause(s *cli.IO) *urfave.Command {
	return eachRunning(s, "pause", "paused", (*launcher.Machine).Pause, &urfave.Command{
		Usage: "stop the CPUs of running VMs until they are resumed",
		Description: `The guests keep their memory and their devices. A guest's clock may stand still
meanwhile, and its network connections may time out.

Examples:

   vmlatch pause guest
   vmlatch pause --all`,
	})
}

func newResume(s *cli.IO) *urfave.Command {
	return eachRunning(s, "resume", "resumed", (*launcher.Machine).Resume, &urfave.Command{
		Usage: "let paused VMs go on",
		Description: `This is for guests that ran before. One that has not been released yet waits for its
latch: see "vmlatch release".

Examples:

   vmlatch resume guest
   vmlatch resume --all`,
	})
}

// eachRunning completes a command that does one thing to each of several running VMs.
func eachRunning(
	s *cli.IO, name, done string, do func(*launcher.Machine, context.Context) error, cmd *urfave.Command,
) *urfave.Command {
	cmd.Name, cmd.ArgsUsage, cmd.Category, cmd.BashComplete = name, "NAME… | --all", catRun, completeAlive
	cmd.Flags = hostFlags(&urfave.BoolFlag{Name: "all", Usage: name + " every running VM"}, jobsFlag(), jsonFlag())
	cmd.Action = func(c *urfave.Context) error {
		released := func(e *rundir.Entry) bool { return e.VMHeld && e.Record != nil && e.Record.Released != nil }
		return onEach(c, s, released, func(ctx context.Context, s *cli.IO, root rundir.Root, t *task) error {
			m, err := launcher.Attach(ctx, root, t.Name)
			if err != nil {
				return err
			}
			defer m.Close()
			if err := do(m, ctx); err != nil {
				return err
			}
			t.Result = done
			s.Say("%s: %s", t.Name, done)
			return nil
		})
	}
	return cmd
}
