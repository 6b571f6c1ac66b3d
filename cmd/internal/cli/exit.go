package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
)

// ExitCode is what a program returns to its caller.
type ExitCode int

// Exit codes, the same for all three programs.
const (
	ExitOK          ExitCode = 0
	ExitFailure     ExitCode = 1
	ExitUsage       ExitCode = 2
	ExitHost        ExitCode = 3
	ExitRefused     ExitCode = 4
	ExitGuest       ExitCode = 5
	ExitInterrupted ExitCode = 130
)

var exitCodes = []struct {
	Code    ExitCode
	Meaning string
}{
	{ExitOK, "done"},
	{ExitFailure, "failed"},
	{ExitUsage, "the command line or an input file is wrong"},
	{ExitHost, "this host cannot do it: QEMU, firmware, a device or a permission is missing"},
	{ExitRefused, "refused: a measurement, a certificate or a latch does not allow it"},
	{ExitGuest, "the guest ended without powering off"},
	{ExitInterrupted, "interrupted by a signal"},
}

func writeExitCodes(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, e := range exitCodes {
		fmt.Fprintf(t, "%d\t%s\n", e.Code, e.Meaning)
	}
	_ = t.Flush()
}

// Error is an error with an exit code and advice. Commands wrap the errors that libraries
// return; libraries know nothing about either.
type Error struct {
	Code  ExitCode
	Err   error
	Hints []string
	// Quiet means that everything has been printed already.
	Quiet bool
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the wrapped error.
func (e *Error) Unwrap() error { return e.Err }

// Fail adds an exit code and hints to an error.
func Fail(code ExitCode, err error, hints ...string) error {
	if err == nil {
		return nil
	}
	return &Error{Code: code, Err: err, Hints: hints}
}

// Usagef returns an error for a mistake on the command line.
func Usagef(format string, args ...any) error {
	return &Error{Code: ExitUsage, Err: fmt.Errorf(format, args...)}
}

// WithHint adds advice to an error and keeps its exit code.
func WithHint(err error, hints ...string) error {
	return Fail(codeOf(err), err, append(hintsOf(err), hints...)...)
}

func codeOf(err error) ExitCode {
	var e *Error
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &e):
		return e.Code
	case errors.Is(err, context.Canceled):
		return ExitInterrupted
	}
	return ExitFailure
}

func hintsOf(err error) []string {
	var e *Error
	if errors.As(err, &e) {
		return e.Hints
	}
	return nil
}
