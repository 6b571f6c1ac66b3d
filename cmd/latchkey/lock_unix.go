//go:build unix

package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/regular"
)

// lockOwner opens an owner file and locks it. It waits for another command, but not long:
// whoever can read the file can hold the lock.
func lockOwner(name string) (*lock, error) {
	for end := time.Now().Add(lockPatience); ; time.Sleep(lockPause) {
		f, err := regular.Open(name)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			mine, err1 := f.Stat()
			there, err2 := os.Stat(name)
			if err := errors.Join(err1, err2); err != nil {
				_ = f.Close()
				return nil, err
			}
			if os.SameFile(mine, there) {
				return &lock{f, func() {}, func() { _ = f.Close() }}, nil
			}
		}
		_ = f.Close() // the last holder of the lock has replaced the file, or one holds it
		switch {
		case err != nil && !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return nil, fmt.Errorf("%s: lock: %w", name, err)
		case time.Now().After(end):
			return nil, cli.Fail(cli.ExitFailure, fmt.Errorf("%w %s: another program holds it", errOwnerFile, name),
				"another latchkey may be at work with it: try again")
		}
	}
}
