package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"

	"golang.org/x/term"

	"github.com/vmlatch/vmlatch/firmware/regular"
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

// Say prints one message. Further lines of it are indented, so that none looks like a
// message or a hint of its own: the text may come from elsewhere.
func (s *IO) Say(format string, args ...any) {
	fmt.Fprintf(s.Err, "%s: %s\n", s.Name, indented(fmt.Sprintf(format, args...)))
}

// Hint prints one piece of advice, as Say prints a message.
func (s *IO) Hint(format string, args ...any) {
	fmt.Fprintf(s.Err, "hint: %s\n", indented(fmt.Sprintf(format, args...)))
}

func indented(text string) string { return strings.ReplaceAll(Escape(text), "\n", "\n  ") }

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

// failJSON is Fail for programs: one object on standard error (error/1).
func (s *IO) failJSON(err error) ExitCode {
	b, e := EncodeJSON(map[string]any{
		"schema": s.Name + ".error/1", "error": err.Error(), "hints": append([]string{}, hintsOf(err)...),
		"exit-code": codeOf(err),
	}, "")
	if e != nil {
		return s.Fail(err)
	}
	_, _ = s.Err.Write(append(b, '\n'))
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

// ReadInput reads a file or a pipe, or standard input for "-", up to limit bytes. Only
// standard input is waited for.
func (s *IO) ReadInput(name string, limit int64) ([]byte, error) {
	if name != "-" {
		return regular.ReadInput(name, limit)
	}
	b, err := io.ReadAll(io.LimitReader(s.In, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("standard input: longer than %d bytes", limit)
	}
	return b, nil
}
