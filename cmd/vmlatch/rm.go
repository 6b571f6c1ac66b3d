package main

import (
	"context"
	"errors"
	"fmt"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// forgetKept removes what is kept with a VM's name, if all of it may go.
func forgetKept(ctx context.Context, c *urfave.Context, root rundir.Root, name string) (had bool, err error) {
	kinds := []struct {
		flag   string
		has    func(string) (bool, error)
		forget func(context.Context, string) error
		err    error
		hint   string
	}{
		{
			"tpm", root.HasTPM, root.ForgetTPM, rundir.ErrTPM,
			"rm --tpm removes it too; what was sealed to it is lost then",
		},
		{"vars", root.HasVars, root.ForgetVars, rundir.ErrVars, "rm --vars removes them too; new ones are made then"},
	}
	if err := rundir.CheckName(name); err != nil {
		return false, cli.Fail(cli.ExitUsage, err)
	}
	for _, k := range kinds { // before anything is lost
		if has, err := k.has(name); err != nil || has && !c.Bool(k.flag) {
			return false, cli.Fail(cli.ExitUsage, errors.Join(err, fmt.Errorf("%s: %w", name, k.err)), k.hint)
		}
	}
	for _, k := range kinds {
		if !c.Bool(k.flag) {
			continue
		}
		err := k.forget(ctx, name)
		if err != nil && !errors.Is(err, rundir.ErrNotFound) {
			return had, err
		}
		had = had || err == nil
	}
	return had, nil
}

func newRm(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name:         "rm",
		Usage:        "remove the logs of VMs that have ended, and on request their TPMs and variables",
		ArgsUsage:    "NAME… | --all",
		Category:     catRun,
		BashComplete: completeEnded,
		Description: `Remove the logs and the last record of VMs that have ended. Specs, disks and whatever
else is yours stay. So does a persistent TPM, and with it the logs: --tpm removes its keys
and counters first. What was sealed to it, such as the key of a disk, is lost then. Variables
of firmware with Secure Boot stay too, until --vars removes them.

Examples:

   vmlatch rm guest
   vmlatch rm --tpm --vars guest
   vmlatch rm --all`,
		Flags: hostFlags(ignoreFlag(),
			&urfave.BoolFlag{Name: "all", Usage: "remove those of every VM that has ended"},
			&urfave.BoolFlag{Name: "tpm", Usage: "also remove its TPM: what was sealed to it is lost"},
			&urfave.BoolFlag{Name: "vars", Usage: "also remove its firmware's variables, of Secure Boot"},
			jobsFlag(), jsonFlag()),
		Action: func(c *urfave.Context) error {
			ended := func(e *rundir.Entry) bool { return e.Status() == rundir.Ended }
			return onEach(c, s, ended, func(ctx context.Context, s *cli.IO, root rundir.Root, t *task) error {
				had, err := forgetKept(ctx, c, root, t.Name)
				if err != nil {
					return err
				}
				err = root.Forget(ctx, t.Name)
				if had && errors.Is(err, rundir.ErrNotFound) {
					err = nil // it had no logs
				}
				if c.Bool("ignore") && errors.Is(err, rundir.ErrNotFound) {
					err = nil
				}
				if err != nil {
					return err
				}
				t.Result = "removed"
				s.Say("%s: removed", t.Name)
				return nil
			})
		},
	}
}
