package qmp

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

func unixRights(f *os.File) []byte { return unix.UnixRights(int(f.Fd())) }

func isDisconnect(err error) bool {
	return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
}
