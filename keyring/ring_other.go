//go:build !linux

package keyring

import "time"

// Ring is a session keyring; there are none on this system.
type Ring struct{}

// Apart is not supported.
func Apart(func(*Ring) error) error { return ErrNotSupported }

// Inherited is not supported.
func Inherited() (*Ring, error) { return nil, ErrNotSupported }

// Known is not supported.
func Known(Type) (bool, error) { return false, ErrNotSupported }

// Add is not supported.
func (*Ring) Add(k Key) (Serial, error) {
	Wipe(k.Payload)
	return 0, ErrNotSupported
}

// Describe is not supported.
func (*Ring) Describe(Serial) (Description, error) { return Description{}, ErrNotSupported }

// Search is not supported.
func (*Ring) Search(Type, string) (Serial, error) { return 0, ErrNotSupported }

// SetTimeout is not supported.
func (*Ring) SetTimeout(Serial, time.Duration) error { return ErrNotSupported }

// SetPermissions is not supported.
func (*Ring) SetPermissions(Serial, Permissions) error { return ErrNotSupported }

// Revoke is not supported.
func (*Ring) Revoke(Serial) error { return ErrNotSupported }
