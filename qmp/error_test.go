package qmp

import "testing"

// TestErrorIsOneLine: QEMU's words cannot look like lines of another program.
func TestErrorIsOneLine(t *testing.T) {
	e := &Error{Op: "cont", Class: "GenericError", Desc: "one\nhint: two\r\nthree\r"}
	if got, want := e.Error(), "qmp: cont: one; hint: two; three"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if !e.Answered() || (&Error{Op: "cont", Err: ErrClosed}).Answered() {
		t.Error("an answer and a lost one are not told apart")
	}
}
