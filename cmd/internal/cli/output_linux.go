package cli

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// unnamed creates a file without a name in a directory: nothing is left of it if the
// program is killed.
func unnamed(dir *os.Root) (*os.File, error) {
	d, err := dir.Open(".")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	fd, err := unix.Openat(int(d.Fd()), ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "new file")
	if _, err := os.Stat(procName(f)); err != nil { // it could not get a name
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func procName(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// linkUnnamed gives it a name that is free.
func linkUnnamed(f *os.File, dir *os.Root, name string) error {
	d, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	err = unix.Linkat(unix.AT_FDCWD, procName(f), int(d.Fd()), name, unix.AT_SYMLINK_FOLLOW)
	if err != nil {
		return &os.PathError{Op: "link", Path: name, Err: err}
	}
	return nil
}
