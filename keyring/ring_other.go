//go:build !linux

package keyring

import "time"

// Serial is the kernel's number of a key.
type Serial int32

// Permissions of a key.
type Permissions uint32

// Description is what the kernel tells of a key.
type Description struct {
	Type        Type
	UID, GID    int
	Permissions Permissions
	Text        string
}

// Ring is an anonymous session keyring; there are none on this system.
type Ring struct{}

// Apart is not supported.
func Apart(func(*Ring) error) error { return ErrNotSupported }

// Here is not supported.
func Here(func(*Ring) error) error { return ErrNotSupported }

// Inherited is not supported.
func Inherited() (*Ring, error) { return nil, ErrNotSupported }

// Known is not supported.
func Known(Type) (bool, error) { return false, ErrNotSupported }

// Add is not supported.
func (*Ring) Add(_ Type, _ string, payload []byte, _ time.Duration) (Serial, error) {
	Wipe(payload)
	return 0, ErrNotSupported
}

// Read is not supported.
func (*Ring) Read(Serial) ([]byte, error) { return nil, ErrNotSupported }

// Describe is not supported.
func (*Ring) Describe(Serial) (Description, error) { return Description{}, ErrNotSupported }

// Search is not supported.
func (*Ring) Search(Type, string) (Serial, error) { return 0, ErrNotSupported }

// Revoke is not supported.
func (*Ring) Revoke(Serial) error { return ErrNotSupported }
