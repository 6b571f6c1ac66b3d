//go:build unix

package regular

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestReadInput(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	sparse, err := os.Create(at("sparse"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sparse.Truncate(1<<40), sparse.Close(), os.WriteFile(at("file"), []byte("12345"), 0o600),
		os.WriteFile(at("empty"), nil, 0o600), os.Symlink("file", at("link")), unix.Mkfifo(at("pipe"), 0o600),
		unix.Mknod(at("socket"), unix.S_IFSOCK|0o600, 0)); err != nil {
		t.Fatal(err)
	}
	go func() { // comes late
		time.Sleep(50 * time.Millisecond)
		if err := os.WriteFile(at("pipe"), []byte("12345"), 0o600); err != nil {
			t.Error(err)
		}
	}()
	for name, c := range map[string]struct {
		want string
		err  error
	}{
		at("file"):    {"12345", nil},
		at("empty"):   {"", nil},
		at("link"):    {"12345", nil},
		at("pipe"):    {"12345", nil},
		os.DevNull:    {"", nil},
		at("missing"): {"", fs.ErrNotExist},
		at("socket"):  {"", ErrNotRegular},
		"/dev/zero":   {"", ErrNotRegular},
		dir:           {"", syscall.EISDIR},
		at("sparse"):  {"", ErrTooLarge},
	} {
		b, err := ReadInput(name, 5)
		if string(b) != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %q, %v, want %q, %v", name, b, err, c.want, c.err)
		}
	}
	if b, err := ReadInput(at("file"), 4); !errors.Is(err, ErrTooLarge) || len(b) > 0 {
		t.Errorf("over the limit: %q, %v, want ErrTooLarge", b, err)
	}
}

// TestInputGrows: the limit holds for a pipe, and for a file that grows.
func TestInputGrows(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("123"), 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := OpenInput(file, 5)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if n, ok := in.Size(); n != 3 || !ok {
		t.Errorf("size %d, %t, want 3, true", n, ok)
	}
	if err := os.WriteFile(file, []byte("123456"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(in); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a file that grew: %v, want ErrTooLarge", err)
	}
	pipe := pipeWith(t, strings.Repeat("x", 6))
	if _, err := ReadInput(pipe, 5); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a pipe: %v, want ErrTooLarge", err)
	}
}

// TestInputSilent: a pipe without a writer, and one whose writer writes nothing.
func TestInputSilent(t *testing.T) {
	for name, write := range map[string]bool{"no writer": false, "a silent writer": true} {
		pipe := filepath.Join(t.TempDir(), "pipe")
		if err := unix.Mkfifo(pipe, 0o600); err != nil {
			t.Fatal(err)
		}
		in, err := OpenInput(pipe, 5)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		if write {
			w, err := os.OpenFile(pipe, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
		}
		in.patience = 30 * time.Millisecond
		if b, err := io.ReadAll(in); !errors.Is(err, ErrSilent) || len(b) > 0 {
			t.Errorf("%s: %q, %v, want ErrSilent", name, b, err)
		}
	}
}

// pipeWith is a pipe as a shell passes it, with a text in it.
func pipeWith(t *testing.T, text string) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	if _, err := w.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return filepath.Join("/dev/fd", strconv.Itoa(int(r.Fd())))
}
