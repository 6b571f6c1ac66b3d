package keyring

import (
	"errors"
	"fmt"
)

// Errors that callers tell apart.
var (
	// ErrNotSupported means that this system has no keyrings.
	ErrNotSupported = errors.New("kernel keyrings are not supported on this system")
	// ErrNoType means that the kernel has no such type of key.
	ErrNoType = errors.New("this kernel has no such type of key")
	// ErrNoneFree means that the processor has no key ID to give.
	ErrNoneFree = errors.New("no key ID is free")
	// ErrNoMaster means that the key under which a new one is kept is not there.
	ErrNoMaster = errors.New("its master key is not there")
	// ErrExists means that the ring has a key of the same type and description.
	ErrExists = errors.New("there is a key of this description already")
	// ErrQuota means that the user has as many keys as are allowed.
	ErrQuota = errors.New("the user's quota of keys is used up")
	// ErrGone means that a key was revoked, has expired, or never was.
	ErrGone = errors.New("the key is gone")
	// ErrDenied means that the key's permissions forbid it.
	ErrDenied = errors.New("the key's permissions forbid it")
	// ErrInvalid means that there can be no such key.
	ErrInvalid = errors.New("no key can be like this")
	// ErrCannot means that keys of this type cannot do it.
	ErrCannot = errors.New("keys of this type cannot do that")
	// ErrThread means that a ring was used on a thread that does not have it.
	ErrThread = errors.New("the keyring is another thread's")
)

// Error is a keyring operation that failed.
type Error struct {
	Op   string // add, read, describe, …
	Type Type   // of the key, if the operation makes one
	Why  error  // one of this package's errors; nil if Err says it all
	More string // numbers that explain it
	Err  error  // the system's
}

func (e *Error) Error() string {
	what := e.Op + " key"
	if e.Type != "" {
		what += " of type " + string(e.Type)
	}
	if e.Why == nil {
		return fmt.Sprintf("%s: %v", what, e.Err)
	}
	if e.More != "" {
		return fmt.Sprintf("%s: %v (%s)", what, e.Why, e.More)
	}
	return fmt.Sprintf("%s: %v", what, e.Why)
}

// Unwrap returns the causes.
func (e *Error) Unwrap() (causes []error) {
	for _, err := range []error{e.Why, e.Err} {
		if err != nil {
			causes = append(causes, err)
		}
	}
	return causes
}
