package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"text/tabwriter"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// IO is a program's standard streams; tests use buffers.
type IO struct {
	In  io.Reader
	Out io.Writer
	Err io.Writer
	// Name is the program's name, printed before each message.
	Name string
}

// System returns the process's own streams.
func System(name string) *IO { return &IO{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Name: name} }

// OutIsTerminal reports whether results go to a terminal.
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

// Table aligns cells separated by tabs. Flush writes all of it at once.
type Table struct {
	*tabwriter.Writer
	b  bytes.Buffer
	to io.Writer
}

// Table is a table on standard output, with a gap of some spaces between columns.
func (s *IO) Table(gap int) *Table {
	t := &Table{to: s.Out}
	t.Writer = tabwriter.NewWriter(&t.b, 0, 0, gap, ' ', 0)
	return t
}

// Flush writes the table.
func (t *Table) Flush() error {
	if err := t.Writer.Flush(); err != nil {
		return err
	}
	_, err := t.b.WriteTo(t.to)
	return err
}

// Fail prints an error with its hints and returns its exit code.
func (s *IO) Fail(err error) ExitCode {
	var b strings.Builder
	whole := &IO{Err: &b, Name: s.Name} // one write: other programs may print too
	whole.Say("%v", err)
	for _, h := range hintsOf(err) {
		whole.Hint("%s", h)
	}
	_, _ = io.WriteString(s.Err, b.String())
	return codeOf(err)
}

// Shared returns the same streams for several goroutines: the lines that each prints stay
// whole.
func (s *IO) Shared() *IO {
	shared := *s
	shared.Err = &lockedWriter{w: s.Err}
	return &shared
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
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
		return nil, fmt.Errorf("%s: longer than %d bytes", name, limit)
	}
	return b, nil
}

// Output is a result that will be written.
type Output struct {
	to   io.Writer // written to directly: standard output, a device, a pipe
	name string
	tmp  *os.File
	mode os.FileMode
}

// PrepareOutput gets ready to write a result to a file, or to standard output
// for "-". What would make that fail, such as a missing directory, fails here. A
// regular file appears whole, at Commit, or not at all.
func (s *IO) PrepareOutput(name string, mode os.FileMode) (*Output, error) {
	if name == "-" {
		return &Output{to: s.Out}, nil
	}
	info, err := os.Stat(name)
	switch {
	case err == nil && info.IsDir():
		return nil, &os.PathError{Op: "write", Path: name, Err: errors.New("is a directory")}
	case err == nil && !info.Mode().IsRegular():
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		return &Output{to: f, tmp: f}, err
	}
	tmp, err := temporary(name)
	return &Output{name: name, tmp: tmp, mode: mode}, err
}

// Commit writes the result.
func (o *Output) Commit(data []byte) error {
	if o.to != nil {
		_, err := o.to.Write(data)
		return err
	}
	_, err := o.tmp.Write(data)
	if err == nil {
		err = o.tmp.Chmod(o.mode)
	}
	if err == nil {
		err = o.tmp.Sync()
	}
	if err == nil {
		err = os.Rename(o.tmp.Name(), o.name)
	}
	if err != nil {
		return err
	}
	o.name = ""
	dir, err := os.Open(filepath.Dir(o.tmp.Name())) // the new name must also survive a power failure
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Discard abandons what was not committed; after Commit it only cleans up.
func (o *Output) Discard() {
	if o.tmp == nil {
		return
	}
	if o.name != "" {
		_ = os.Remove(o.tmp.Name())
	}
	_ = o.tmp.Close()
}

// temporary opens the file that will replace the named one. It has a fixed name and a
// lock, so that a file left by a killed program is reused, and does not stay behind with
// secrets in it.
func temporary(name string) (*os.File, error) {
	path := filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+".new")
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		mine, err1 := f.Stat()
		there, err2 := os.Lstat(path)
		if err == nil && err1 == nil && err2 == nil && os.SameFile(mine, there) {
			return f, f.Truncate(0)
		}
		_ = f.Close() // the last holder of the lock has renamed or removed it
		if err != nil && !errors.Is(err, unix.EINTR) {
			return nil, err
		}
	}
}

// WriteFile replaces a file atomically, using a temporary file next to it.
func WriteFile(name string, data []byte, mode os.FileMode) error {
	tmp, err := temporary(name)
	if err != nil {
		return err
	}
	o := &Output{name: name, tmp: tmp, mode: mode}
	defer o.Discard()
	return o.Commit(data)
}
