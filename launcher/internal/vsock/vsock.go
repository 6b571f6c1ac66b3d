// Package vsock asks whether a service listens on a vsock address of this machine.
package vsock

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Local is the context ID of this machine itself (vsock(7), VMADDR_CID_LOCAL).
const Local = 1

var (
	ErrNoVsock = errors.New("this kernel has no vsock")
	ErrRefused = errors.New("nothing listens there")
)

// connectTimeout is an option of AF_VSOCK (Linux, uapi/linux/vm_sockets.h,
// SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD).
const connectTimeout = 6

// Reach connects to an address and hangs up. The error is ErrNoVsock, ErrRefused or the
// kernel's own.
func Reach(cid, port uint32, timeout time.Duration) error {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoVsock, err)
	}
	defer unix.Close(fd)
	wait := unix.NsecToTimeval(int64(timeout))
	_ = unix.SetsockoptTimeval(fd, unix.AF_VSOCK, connectTimeout, &wait)
	err = unix.Connect(fd, &unix.SockaddrVM{CID: cid, Port: port})
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ECONNRESET) {
		return ErrRefused
	}
	return err
}
