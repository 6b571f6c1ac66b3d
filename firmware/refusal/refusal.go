// Package refusal says why evidence is refused: by a code for programs, and in words with a
// remedy for people.
package refusal

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
)

// Reason is the code of a check that failed.
type Reason string

// Error is why evidence is refused. Verification ends at the first check that fails.
type Error struct {
	Reason Reason `json:"reason"`
	Field  string `json:"field,omitempty"` // where there is one, by its name in the vendor's document
	Got    string `json:"got,omitempty"`
	Want   string `json:"want,omitempty"`
	Text   string `json:"text"`          // a sentence without a full stop
	Fix    string `json:"fix,omitempty"` // what helps
}

func (e *Error) Error() string {
	text := e.Text
	switch {
	case e.Want != "":
		text += fmt.Sprintf(": %s is %s, must be %s", e.Field, e.Got, e.Want)
	case e.Got != "":
		text += fmt.Sprintf(": %s is %s", e.Field, e.Got)
	}
	return text + " (" + string(e.Reason) + ")"
}

// New is a refusal with the meaning of its code.
func New(r Reason) *Error {
	m := meanings[r]
	return &Error{Reason: r, Text: m.text, Fix: m.fix}
}

// Because adds what was found.
func (e *Error) Because(format string, args ...any) *Error {
	e.Text += ": " + fmt.Sprintf(format, args...)
	return e
}

// Is adds the value of a field, and what it must be; "" says nothing of that.
func (e *Error) Value(field, got, want string) *Error {
	e.Field, e.Got, e.Want = field, got, want
	return e
}

// Differs adds two values of a field, in bytes.
func (e *Error) Differs(field string, got, want []byte) *Error {
	return e.Value(field, hex.EncodeToString(got), hex.EncodeToString(want))
}

// Of returns the refusal that an error is, or nil.
func Of(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return nil
}

// Meaning is what a code says, without a full stop; "" for one that does not exist.
func Meaning(r Reason) string { return meanings[r].text }

// Exactly is a refusal if a value is not the one that is demanded; nil demands nothing.
func Exactly(r Reason, field string, got, want []byte) error {
	if want == nil || bytes.Equal(got, want) {
		return nil
	}
	return New(r).Differs(field, got, want)
}

// Among is a refusal if a value is none of those that are accepted; nil accepts any.
func Among(r Reason, field string, got []byte, want [][]byte) error {
	if want == nil || Contains(want, got) {
		return nil
	}
	if len(want) == 1 {
		return New(r).Differs(field, got, want[0])
	}
	return New(r).Value(field, hex.EncodeToString(got), fmt.Sprintf("one of %d digests", len(want)))
}

// Contains reports whether a list has a value.
func Contains(list [][]byte, b []byte) bool {
	return slices.ContainsFunc(list, func(x []byte) bool { return bytes.Equal(x, b) })
}
