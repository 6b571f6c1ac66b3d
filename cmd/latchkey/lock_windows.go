package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/windows"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/regular"
)

// lockOwner opens an owner file and locks a file next to it: Windows cannot replace an open
// file.
func lockOwner(name string) (*lock, error) {
	beside := filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+".lock")
	l, err := os.OpenFile(beside, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(lockPatience); ; time.Sleep(lockPause) {
		err = windows.LockFileEx(windows.Handle(l.Fd()),
			windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &windows.Overlapped{})
		if err == nil {
			break
		}
		if !errors.Is(err, windows.ERROR_LOCK_VIOLATION) || time.Now().After(end) {
			_ = l.Close()
			return nil, cli.Fail(cli.ExitFailure,
				fmt.Errorf("%w %s: another program holds it: %w", errOwnerFile, name, err),
				"another latchkey may be at work with it: try again")
		}
	}
	f, err := regular.Open(name)
	if err != nil {
		_ = l.Close()
		return nil, err
	}
	return &lock{f, func() { _ = f.Close() }, func() { _ = l.Close() }}, nil
}
