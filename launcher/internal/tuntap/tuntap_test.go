package tuntap

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWhenLetGo: an interface that is still being taken from its last user is waited for, one that
// is in use is not for long, and other errors are not repeated.
func TestWhenLetGo(t *testing.T) {
	busy := os.NewSyscallError("TUNSETIFF", unix.EBUSY)
	tests := map[string]struct {
		errs []error // of the attempts; the last one goes on
		want error
	}{
		"free":    {[]error{nil}, nil},
		"let go":  {[]error{busy, busy, nil}, nil},
		"in use":  {[]error{busy}, unix.EBUSY},
		"refused": {[]error{unix.EPERM, nil}, unix.EPERM},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tries := 0
			_, err := whenLetGo(func() (*os.File, error) {
				err := tt.errs[min(tries, len(tt.errs)-1)]
				tries++
				return nil, err
			})
			if !errors.Is(err, tt.want) {
				t.Errorf("after %d tries: %v, want %v", tries, err, tt.want)
			}
		})
	}
}
