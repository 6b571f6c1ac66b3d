package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// JSON prints a value as indented JSON. What Escape would change on a terminal is written
// as \uNNNN, which is the same JSON.
func (s *IO) JSON(v any) error {
	b, err := EncodeJSON(v, "  ")
	if err != nil {
		return err
	}
	_, err = s.Out.Write(append(b, '\n'))
	return err
}

// EncodeJSON is one JSON value without control characters, indented unless indent is "".
func EncodeJSON(v any, indent string) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", indent)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	text := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	if bytes.IndexFunc(text, func(r rune) bool { return !printable(r) && r != '\n' }) < 0 {
		return text, nil
	}
	var safe []byte
	for _, r := range string(text) {
		switch {
		case r == '\n' || printable(r): // a newline stands between values only
			safe = utf8.AppendRune(safe, r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			safe = fmt.Appendf(safe, `\u%04x\u%04x`, high, low)
		default:
			safe = fmt.Appendf(safe, `\u%04x`, r)
		}
	}
	return safe, nil
}

// Escape makes text from elsewhere harmless for a terminal: control characters
// other than newline and tab become \xNN, as does what is not UTF-8.
func Escape(s string) string {
	clean := func(r rune) bool { return r == '\n' || r == '\t' || printable(r) }
	if strings.IndexFunc(s, func(r rune) bool { return !clean(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		if clean(r) {
			b.WriteString(s[:n])
		} else {
			for i := range n {
				fmt.Fprintf(&b, `\x%02x`, s[i])
			}
		}
		s = s[n:]
	}
	return b.String()
}

// printable reports whether a character shows itself and does nothing else. What is not
// UTF-8 reads as U+FFFD, and is not.
func printable(r rune) bool { return r != utf8.RuneError && unicode.IsPrint(r) }

// EscapeWriter applies Escape to everything written through it; a carriage
// return before a newline is left out. Flush writes what has been held back.
type EscapeWriter struct {
	W       io.Writer
	pending []byte // a character or a line end that may not be complete
}

func (e *EscapeWriter) Write(p []byte) (int, error) {
	b := append(e.pending, p...)
	whole := len(b) - incomplete(b)
	e.pending = append([]byte(nil), b[whole:]...)
	if err := e.write(b[:whole]); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush writes what Write has held back.
func (e *EscapeWriter) Flush() error {
	b := e.pending
	e.pending = nil
	return e.write(b)
}

func (e *EscapeWriter) write(b []byte) error {
	_, err := io.WriteString(e.W, Escape(strings.ReplaceAll(string(b), "\r\n", "\n")))
	return err
}

// incomplete counts the bytes at the end that the next write could complete.
func incomplete(b []byte) int {
	n := len(b)
	for i := 1; i <= min(n, utf8.UTFMax-1); i++ {
		if utf8.RuneStart(b[n-i]) {
			if !utf8.FullRune(b[n-i:]) {
				return i
			}
			break
		}
	}
	if n > 0 && b[n-1] == '\r' {
		return 1
	}
	return 0
}
