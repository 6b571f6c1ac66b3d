// Package fault has the launcher's one error type. Every room of the launcher
// returns it, so that a caller finds what to do about an error in one place.
//
// Start with [Error].
package fault

import (
	"errors"
	"fmt"
	"strings"
)

// Kind is who or what has to change before the same call can succeed.
type Kind int

// Kinds.
const (
	Failure   Kind = iota // something went wrong; none of the others
	Spec                  // what the user wrote: a spec, host.toml
	Usage                 // what the user asked of a command
	Host                  // this host lacks something
	Refused               // a proof, an owner or a latch does not allow it
	QEMU                  // what QEMU, the kernel or the platform said; package advice explains it
	State                 // the VM's state does not allow it
	NameTaken             // a VM of the name is running; neither spec nor host is at fault
)

// Ids of checks whose answers other rooms give as errors.
const (
	FilesReadable    = "files-readable"
	QEMUObject       = "qemu-object"
	TPMProgram       = "tpm-swtpm"
	TPMState         = "tpm-state-key"
	Technology       = "technology" // of the choice between several
	TechnologyUsable = "technology-usable"
)

// ErrHost is what errors of kind Host are, for errors.Is.
var ErrHost = errors.New("this host cannot")

// Error is an error of the launcher.
type Error struct {
	Kind Kind
	// File, Line and Column are where the error is, if it is in a file. A line of 0
	// is unknown.
	File         string
	Line, Column int
	// Key is the key of the file, such as "confidential.policy".
	Key string
	// Op is what was being done, of kind Host in the infinitive ("use KVM"); else
	// often the VM's name.
	Op  string
	Err error
	// Fix is what to do about it, one suggestion a line.
	Fix string
	// Check is the id of the check that found it, if one did.
	Check string
	// Hardware means that an emulated platform would do instead of this host.
	Hardware bool
}

// Error returns "file:line:column: key: op: cause".
func (e *Error) Error() string {
	var parts []string
	if e.File != "" {
		at := e.File
		if e.Line > 0 {
			at += fmt.Sprintf(":%d:%d", e.Line, e.Column)
		}
		parts = append(parts, at)
	}
	if e.Key != "" {
		parts = append(parts, e.Key)
	}
	if e.Op != "" && e.Kind == Host {
		parts = append(parts, ErrHost.Error()+" "+e.Op)
	} else if e.Op != "" {
		parts = append(parts, e.Op)
	}
	if e.Err != nil {
		parts = append(parts, e.Err.Error())
	}
	return strings.Join(parts, ": ")
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether the target is [ErrHost] and the error is of kind Host.
func (e *Error) Is(target error) bool { return target == ErrHost && e.Kind == Host }

// As returns the first error of the launcher in err's tree, nil if there is none.
func As(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return nil
}

// Bare is an error without what a list of errors says once: the file, and that this
// host cannot do it.
func Bare(err error) string {
	e := As(err)
	if e == nil {
		return err.Error()
	}
	short := *e
	short.File = ""
	return strings.TrimPrefix(short.Error(), ErrHost.Error()+" ")
}
