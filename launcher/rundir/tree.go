package rundir

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// removeTree removes a directory with all that a VM's process made in it, which may have meant to
// be in the way: directories that cannot be entered or listed, and that lie in each other deeper
// than a path, or this process's descriptors, reach. It follows no link.
func removeTree(dir string) error {
	err := os.Remove(dir)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err := emptyTree(dir); err != nil {
		return err
	}
	return os.Remove(dir)
}

// emptyTree removes what is in a directory, but not the directory.
func emptyTree(dir string) error {
	top, err := openDir(unix.AT_FDCWD, dir)
	if err == nil {
		err = empty(top)
		_ = top.Close()
	}
	if err != nil {
		return &os.PathError{Op: "empty", Path: dir, Err: err}
	}
	return nil
}

// openDir opens a directory, whatever its mode is.
func openDir(at int, name string) (*os.File, error) {
	place, err := unix.Openat(at, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(place)
	path := fmt.Sprintf("/proc/self/fd/%d", place)
	if err := unix.Chmod(path, 0o700); err != nil {
		return nil, err
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// empty removes all that is in a directory. What is in a directory below it moves up, so that no
// depth matters.
func empty(top *os.File) error {
	at, moved := int(top.Fd()), 0
	return clearDir(top, func(name string) error {
		sub, err := openDir(at, name)
		if err != nil {
			return err
		}
		defer sub.Close()
		err = clearDir(sub, func(name string) error { return moveUp(sub, name, at, &moved) })
		if err != nil {
			return err
		}
		return unix.Unlinkat(at, name, unix.AT_REMOVEDIR)
	})
}

// moveUp moves a directory elsewhere, under a name that nothing has there.
func moveUp(from *os.File, name string, to int, moved *int) error {
	at := int(from.Fd())
	inner, err := openDir(at, name) // it moves only if it can be written to
	if err != nil {
		return err
	}
	_ = inner.Close()
	for err = unix.EEXIST; errors.Is(err, unix.EEXIST); *moved++ {
		err = unix.Renameat2(at, name, to, fmt.Sprint("moved", *moved), unix.RENAME_NOREPLACE)
	}
	return err
}

// clearDir removes what is in a directory until nothing is; other does away with what is not empty.
func clearDir(dir *os.File, other func(name string) error) error {
	at := int(dir.Fd())
	for {
		names, err := list(dir)
		if err != nil || len(names) == 0 {
			return err
		}
		for _, name := range names {
			if unix.Unlinkat(at, name, 0) == nil || unix.Unlinkat(at, name, unix.AT_REMOVEDIR) == nil {
				continue
			}
			if err := other(name); err != nil {
				return err
			}
		}
	}
}

// list is some of what is in a directory now; nothing if it is empty.
func list(dir *os.File) ([]string, error) {
	if _, err := dir.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	names, err := dir.Readdirnames(1024)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return names, err
}
