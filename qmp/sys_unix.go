package qmp

import (
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

func unixRights(f *os.File) []byte { return unix.UnixRights(int(f.Fd())) }

func isDisconnect(err error) bool {
	return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
}

// Pair makes a connection and its other end, for a QEMU to inherit.
func Pair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	own, theirs := os.NewFile(uintptr(fds[0]), "qmp"), os.NewFile(uintptr(fds[1]), "qmp")
	defer own.Close()
	c, err := net.FileConn(own)
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return c, theirs, nil
}
