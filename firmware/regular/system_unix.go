//go:build unix

package regular

import (
	"errors"

	"golang.org/x/sys/unix"
)

const (
	nonBlock = unix.O_NONBLOCK
	noFollow = unix.O_NOFOLLOW
)

func isSocket(err error) bool { return errors.Is(err, unix.ENXIO) || errors.Is(err, unix.EOPNOTSUPP) }

func isLink(err error) bool { return errors.Is(err, unix.ELOOP) }

func isAgain(err error) bool { return errors.Is(err, unix.EAGAIN) }
