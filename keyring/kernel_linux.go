package keyring

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// kernel is what a [Ring] asks of the kernel.
type kernel interface {
	join() (Serial, error) // a new session keyring, for this thread
	add(t Type, description string, payload []byte, ring Serial) (Serial, error)
	search(ring Serial, t Type, description string) (Serial, error)
	describe(s Serial) (string, error)
	control(command int, s Serial, arg int) error
}

// linux is this kernel (add_key(2), keyctl(2)).
type linux struct{}

func (linux) join() (Serial, error) {
	n, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0)
	return Serial(n), err
}

func (linux) add(t Type, description string, payload []byte, ring Serial) (Serial, error) {
	n, err := unix.AddKey(string(t), description, payload, int(ring))
	return Serial(n), err
}

func (linux) search(ring Serial, t Type, description string) (Serial, error) {
	n, err := unix.KeyctlSearch(int(ring), string(t), description, 0)
	return Serial(n), err
}

func (linux) describe(s Serial) (string, error) {
	return unix.KeyctlString(unix.KEYCTL_DESCRIBE, int(s))
}

func (linux) control(command int, s Serial, arg int) error {
	_, err := unix.KeyctlInt(command, int(s), arg, 0, 0)
	return err
}

// explain puts an errno in words (add_key(2), keyctl(2)).
func explain(op string, t Type, err error) error {
	if err == nil {
		return nil
	}
	e := &Error{Op: op, Type: t, Err: err}
	switch {
	case errors.Is(err, unix.ENODEV):
		e.Why = ErrNoType
	case errors.Is(err, unix.ENOKEY) && op == "add" && t == TypeMKTME:
		e.Why = ErrNoneFree
	case errors.Is(err, unix.ENOKEY) && op == "add":
		e.Why = ErrNoMaster
	case errors.Is(err, unix.ENOKEY), errors.Is(err, unix.EKEYREVOKED), errors.Is(err, unix.EKEYEXPIRED):
		e.Why = ErrGone
	case errors.Is(err, unix.EDQUOT):
		e.Why, e.More = ErrQuota, quota()
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		e.Why = ErrDenied
		if t == TypeMKTME && op == "add" {
			e.More = "it takes CAP_SYS_RESOURCE or CAP_SYS_ADMIN"
		}
	case errors.Is(err, unix.EINVAL):
		e.Why = ErrInvalid
	case errors.Is(err, unix.EOPNOTSUPP):
		e.Why = ErrCannot
	case errors.Is(err, unix.ENOSYS):
		e.Why = ErrNotSupported
	}
	return e
}

// quota reads the user's numbers (proc(5), /proc/key-users).
func quota() string {
	b, err := os.ReadFile("/proc/key-users")
	if err != nil {
		return ""
	}
	for line := range bytes.Lines(b) {
		id, rest, ok := strings.Cut(strings.TrimSpace(string(line)), ":")
		if f := strings.Fields(rest); ok && id == strconv.Itoa(os.Geteuid()) && len(f) == 4 {
			return fmt.Sprintf("keys %s, bytes %s", f[2], f[3])
		}
	}
	return ""
}
