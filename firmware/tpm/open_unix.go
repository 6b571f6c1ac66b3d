//go:build unix

package tpm

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// openDevice opens a device for calls that block: one that does not block answers with no bytes
// while the TPM works (Linux, drivers/char/tpm/tpm-dev-common.c).
func openDevice(name string) (*os.File, error) {
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func isBusy(err error) bool { return errors.Is(err, unix.EBUSY) }
