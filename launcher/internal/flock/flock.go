// Package flock opens lock files: the locks that tell who lives, which slots are
// taken, and who asks a QEMU.
package flock

import (
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Open opens a lock file, makes it if flags are O_CREAT, and locks it as flock(2)
// says. With LOCK_NB a lock held elsewhere is unix.EWOULDBLOCK. Links are not
// followed.
func Open(name string, flags, how int) (*os.File, error) {
	access := unix.O_RDONLY // is enough for a lock, also where nothing can be written
	if flags&unix.O_CREAT != 0 {
		access = unix.O_RDWR
	}
	fd, err := unix.Open(name, flags|access|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	for {
		if err = unix.Flock(fd, how); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, &fs.PathError{Op: "lock", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}
