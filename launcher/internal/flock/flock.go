// Package flock opens lock files: the locks that tell which VM is alive, which
// slots are taken, and which command may ask a QEMU.
//
// No call waits inside the kernel, where nothing could end the wait: [Open] and
// [Wait] return with their context, and leave neither a goroutine nor a descriptor.
package flock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A lock that is not free is looked at again at random times, and less and less often.
// Waiters that the kernel wakes whenever a lock ends (inotify(7)) all wake at once: 64 of
// them took several times as long, and several times as much of the processor.
const (
	firstDelay = 200 * time.Microsecond
	lastDelay  = 50 * time.Millisecond
)

// Try opens a lock file, makes it if flags have O_CREAT, and locks it: how is LOCK_EX
// or LOCK_SH (flock(2)). A lock that is held elsewhere is unix.EWOULDBLOCK. Links
// are not followed. The file is open for reading, unless flags say otherwise: a process
// that inherits it can hold the lock with that, and cannot fill a disk.
func Try(name string, flags, how int) (*os.File, error) {
	f, err := open(name, flags)
	if err != nil {
		return nil, err
	}
	free, err := try(f, how)
	if err == nil && !free {
		err = unix.EWOULDBLOCK
	}
	return locked(f, err)
}

// Open is Try, but waits for a lock that is held elsewhere until ctx ends.
func Open(ctx context.Context, name string, flags, how int) (*os.File, error) {
	f, err := open(name, flags)
	if err != nil {
		return nil, err
	}
	return locked(f, Wait(ctx, f, how))
}

// Wait locks an open lock file soon after it is free, or returns with ctx's error. A
// lock that is free is taken even if ctx has ended.
func Wait(ctx context.Context, f *os.File, how int) error {
	return poll(ctx, func() (bool, error) { return try(f, how) })
}

// poll looks until the lock is had, a look fails, or ctx ends.
func poll(ctx context.Context, look func() (had bool, err error)) error {
	for delay := firstDelay; ; delay = min(2*delay, lastDelay) {
		if had, err := look(); had || err != nil {
			return err
		}
		if err := sleep(ctx, delay/2+rand.N(delay/2)); err != nil {
			return fmt.Errorf("another process holds it: %w", err)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func open(name string, flags int) (*os.File, error) {
	fd, err := unix.Open(name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// locked is the file, or why it could not be locked.
func locked(f *os.File, err error) (*os.File, error) {
	if err != nil {
		_ = f.Close()
		return nil, &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
	}
	return f, nil
}

// try locks a file if nothing stands in the way.
func try(f *os.File, how int) (bool, error) {
	err := Control(f, func(fd int) error {
		for {
			if err := unix.Flock(fd, how|unix.LOCK_NB); err != unix.EINTR {
				return err
			}
		}
	})
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

// Control calls do with the descriptor of a file, which stays open meanwhile, also
// if another goroutine closes the file.
func Control(f *os.File, do func(fd int) error) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if c.Control(func(fd uintptr) { failed = do(int(fd)) }) != nil {
		return fs.ErrClosed
	}
	return failed
}
