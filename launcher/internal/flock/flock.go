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
	"os"

	"golang.org/x/sys/unix"
)

// Try opens a lock file, makes it if flags have O_CREAT, and locks it: how is LOCK_EX
// or LOCK_SH (flock(2)). A lock that is held elsewhere is unix.EWOULDBLOCK. Links
// are not followed.
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

// Wait locks an open lock file as soon as it can, or returns with ctx's error.
func Wait(ctx context.Context, f *os.File, how int) error {
	w := &watch{lock: f}
	defer w.close()
	for {
		if free, err := try(f, how); free || err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("another process holds it: %w", err)
		}
		w.wait(ctx)
	}
}

func open(name string, flags int) (*os.File, error) {
	access := unix.O_RDONLY // is enough for a lock, also where nothing can be written
	if flags&unix.O_CREAT != 0 {
		access = unix.O_RDWR
	}
	fd, err := unix.Open(name, flags|access|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
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
