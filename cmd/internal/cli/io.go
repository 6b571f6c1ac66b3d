package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// IO is a program's standard streams; tests make one over buffers.
type IO struct {
	In  io.Reader
	Out io.Writer
	Err io.Writer
	// Name is the program's, before each message.
	Name string
}

// System returns the process's own streams.
func System(name string) *IO { return &IO{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Name: name} }

// OutIsTerminal says whether results go to a person's terminal.
func (s *IO) OutIsTerminal() bool { return isTerminal(s.Out) }

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Say prints one message.
func (s *IO) Say(format string, args ...any) {
	fmt.Fprintf(s.Err, "%s: %s\n", s.Name, Escape(fmt.Sprintf(format, args...)))
}

// Hint prints one line of advice.
func (s *IO) Hint(format string, args ...any) {
	fmt.Fprintf(s.Err, "hint: %s\n", Escape(fmt.Sprintf(format, args...)))
}

// JSON prints a value as indented JSON.
func (s *IO) JSON(v any) error {
	e := json.NewEncoder(s.Out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// Escape makes text from elsewhere harmless for a terminal: control characters
// other than newline and tab become \xNN, as does what is not UTF-8.
func Escape(s string) string {
	clean := func(r rune) bool { return r == '\n' || r == '\t' || r != utf8.RuneError && unicode.IsPrint(r) }
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

// EscapeWriter applies Escape to everything written through it; a carriage
// return before a newline is left out. Flush writes what may still be held back.
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

// ReadInput reads a file, or standard input for "-", up to limit bytes.
func (s *IO) ReadInput(name string, limit int64) ([]byte, error) {
	r := s.In
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s: over %d bytes", name, limit)
	}
	return b, nil
}

// WriteOutput writes a result to a file, or to standard output for "-". The
// file appears whole or not at all.
func (s *IO) WriteOutput(name string, data []byte, mode os.FileMode) error {
	if name == "-" {
		_, err := s.Out.Write(data)
		return err
	}
	return WriteFile(name, data, mode)
}

// WriteFile replaces a file by way of a temporary one beside it.
func WriteFile(name string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once renamed
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(name)) // the new name must survive a power cut, too
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
