package qmp

import (
	"errors"
	"strings"
)

var (
	// ErrClosed is wrapped by errors of a connection that was closed or lost.
	ErrClosed = errors.New("connection closed")
	// ErrProtocol is wrapped when the peer does not speak QMP.
	ErrProtocol = errors.New("peer does not speak QMP")
)

// Error is the error of one operation on a connection.
type Error struct {
	Op    string // command, "connect" or "read"
	Class string // QMP error class, such as CommandNotFound; empty if QEMU did not answer
	Desc  string // QEMU's own words; empty if QEMU did not answer
	Err   error  // the cause, when QEMU did not answer
}

func (e *Error) Error() string {
	parts := []string{"qmp", e.Op}
	if e.Desc != "" || e.Class != "" {
		parts = append(parts, oneLine(e.Desc))
	}
	if e.Err != nil {
		parts = append(parts, e.Err.Error())
	}
	return strings.Join(parts, ": ")
}

// oneLine keeps QEMU's words from looking like lines of another program.
func oneLine(text string) string {
	return strings.NewReplacer("\r\n", "; ", "\n", "; ", "\r", "; ").Replace(strings.TrimSpace(text))
}

// Answered reports whether QEMU said this. Otherwise its answer was lost, and the command
// may have been carried out.
func (e *Error) Answered() bool { return e.Class != "" || e.Desc != "" }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ClassCommandNotFound is the class of errors about unknown commands.
const ClassCommandNotFound = "CommandNotFound"

// IsCommandNotFound reports whether QEMU does not know the command.
func IsCommandNotFound(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Class == ClassCommandNotFound
}
