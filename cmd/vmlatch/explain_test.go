package main

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/slot"
)

// TestExitCodes: whose fault it is decides the exit code, and not which system call
// told of it. Exit code 2 sends a user to the spec, 3 to the host.
func TestExitCodes(t *testing.T) {
	const none = fault.Kind(-1) // not of the launcher
	causes := map[string]error{
		"none": errors.New("x"), "EACCES": &fs.PathError{Op: "open", Path: "x", Err: unix.EACCES},
		"ENOTDIR": unix.ENOTDIR, "ENOENT": unix.ENOENT, "ENOSPC": unix.ENOSPC, "EMFILE": unix.EMFILE,
		"ENOMEM": unix.ENOMEM, "no slot": slot.ErrNone, "not found": rundir.ErrNotFound,
	}
	ofHost := []string{"EACCES", "ENOTDIR", "ENOSPC", "EMFILE", "ENOMEM", "no slot"}
	for kind, want := range map[fault.Kind]cli.ExitCode{
		none: cli.ExitFailure, fault.Failure: cli.ExitFailure, fault.Spec: cli.ExitUsage, fault.Usage: cli.ExitUsage,
		fault.Host: cli.ExitHost, fault.Refused: cli.ExitRefused, fault.QEMU: cli.ExitFailure,
		fault.State: cli.ExitFailure, fault.NameTaken: cli.ExitFailure,
	} {
		codes := map[string]cli.ExitCode{}
		for name := range causes {
			codes[name] = want
		}
		if kind == none || kind == fault.Failure || kind == fault.QEMU { // only the cause tells
			for _, name := range ofHost {
				codes[name] = cli.ExitHost
			}
		}
		for name, cause := range causes {
			err := fmt.Errorf("a command: %w", cause)
			if kind != none {
				err = fmt.Errorf("a command: %w", &fault.Error{Kind: kind, Op: "do it", Err: cause})
			}
			got := cli.ExitFailure
			var explained *cli.Error
			if errors.As(explain(err), &explained) {
				got = explained.Code
			}
			if got != codes[name] {
				t.Errorf("kind %d, cause %s: exit code %d, want %d", kind, name, got, codes[name])
			}
		}
	}
}
