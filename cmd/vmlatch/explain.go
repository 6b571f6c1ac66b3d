package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/sev/exchange"
	"github.com/vmlatch/vmlatch/launcher"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/slot"
)

const emulateHint = `without the hardware, "--emulate" takes the same steps on an emulated platform`

// checkCode is the exit code of checks that refuse.
func checkCode(e *launcher.CheckError) cli.ExitCode {
	switch {
	case e.NameTaken():
		return cli.ExitFailure
	case e.OfHost():
		return cli.ExitHost
	}
	return cli.ExitUsage
}

// explain gives a library's error its exit code and hints.
func explain(err error) error {
	var done *cli.Error
	if errors.As(err, &done) {
		return err
	}
	if a, ok := launcher.Advise(err); ok {
		code := cli.ExitFailure
		switch {
		case a.Refused:
			code = cli.ExitRefused
		case a.Host:
			code = cli.ExitHost
		}
		return cli.Fail(code, err, "cause: "+a.Cause, a.Fix)
	}
	var spec *launcher.SpecError
	var file *launcher.FileError
	var state *launcher.StateError
	var owner *launcher.OwnerError
	var check *launcher.CheckError
	var choice *launcher.ChoiceError
	var lacking *launcher.HostError
	var unfit *launcher.CommandError
	switch {
	case errors.As(err, &choice):
		code := cli.ExitUsage
		if choice.OfHost() {
			code = cli.ExitHost
		}
		return cli.Fail(code, err, `"vmlatch host" shows what this host can do`)
	case errors.As(err, &check):
		code := checkCode(check)
		var hints []string
		for _, r := range check.Failed {
			hints = append(hints, fmt.Sprintf("%s: %s", r.ID, r.Fix))
		}
		return cli.Fail(code, err, append(hints, `"vmlatch check FILE" shows all checks`)...)
	case errors.As(err, &spec):
		if spec.Fix != "" {
			return cli.Fail(cli.ExitUsage, err, spec.Fix)
		}
		if spec.Near != "" {
			return cli.Fail(cli.ExitUsage, err, fmt.Sprintf("did you mean %q?", spec.Near))
		}
		return cli.Fail(cli.ExitUsage, err, `"vmlatch help spec" describes the file`)
	case errors.As(err, &file):
		return cli.Fail(cli.ExitUsage, err, "paths in a spec start from the spec's own directory")
	case errors.As(err, &owner):
		code := cli.ExitFailure
		if owner.Code == int(cli.ExitRefused) {
			code = cli.ExitRefused
		}
		return cli.Fail(code, err, "the VM was ended; nothing of it is left")
	case errors.Is(err, launcher.ErrLatchClosed):
		return cli.Fail(cli.ExitRefused, err,
			`"vmlatch measure NAME" shows the owner what was loaded; "vmlatch inject NAME PACKET" takes the owner's answer`)
	case errors.As(err, &unfit):
		return cli.Fail(cli.ExitRefused, err, "to move a VM, stop it and start it on the other host: that is a new launch, which its owner verifies again")
	case errors.Is(err, slot.ErrNone):
		return cli.Fail(cli.ExitHost, err, "stop another confidential VM; the pool's size is in vmlatch host, an operator's limit in [slots] of host.toml")
	case errors.As(err, &lacking):
		var hints []string
		if lacking.Fix != "" {
			hints = append(hints, lacking.Fix)
		}
		if lacking.Hardware {
			hints = append(hints, emulateHint)
		}
		return cli.Fail(cli.ExitHost, err, hints...)
	case errors.Is(err, launcher.ErrHost):
		return cli.Fail(cli.ExitHost, err, emulateHint)
	case errors.Is(err, exchange.ErrFormat):
		return cli.Fail(cli.ExitUsage, err, `packets come from "latchkey secret"`)
	case errors.Is(err, rundir.ErrEnded):
		return cli.Fail(cli.ExitFailure, err, `"vmlatch restart NAME" starts it again, "vmlatch logs NAME" has its last words`)
	case errors.Is(err, rundir.ErrNotFound):
		return cli.Fail(cli.ExitFailure, err, `"vmlatch ps --all" lists the VMs of this user`)
	case errors.Is(err, rundir.ErrExists):
		return cli.Fail(cli.ExitFailure, err, `"vmlatch stop NAME" ends it; a spec can be started under another name with --name`)
	case errors.Is(err, rundir.ErrBusy):
		return cli.Fail(cli.ExitFailure, err, "try again when that has finished")
	case errors.As(err, &state):
		return cli.Fail(cli.ExitFailure, err, `"vmlatch help states" shows which step follows which`)
	case errors.Is(err, rundir.ErrUnsafe):
		return cli.Fail(cli.ExitHost, err, "name another one: --run-dir and --state-dir, or run-dir and state-dir in host.toml")
	}
	for _, r := range resources {
		if errors.Is(err, r.err) {
			return cli.Fail(cli.ExitHost, err, r.hint)
		}
	}
	return err
}

// resources are what a host can run out of, or withhold.
var resources = []struct {
	err  error
	hint string
}{
	{unix.ENOSPC, "make room in the file system of the path, or name other directories: \"vmlatch help files\""},
	{unix.EDQUOT, "make room, or have the user's quota raised"},
	{unix.EROFS, "name a directory that can be written to: --run-dir and --state-dir, or host.toml"},
	{unix.ENOTDIR, "name a directory: --run-dir and --state-dir, or host.toml"},
	{unix.EMFILE, "raise the limit of open files: LimitNOFILE= of the unit, nofile in limits.conf, or ulimit -n"},
	{unix.ENFILE, "the whole system has too many files open: sysctl fs.file-max"},
	{unix.ENOMEM, "stop something, or give the VM less memory"},
	{os.ErrPermission, "look at who owns the path, and at who you are"},
}
