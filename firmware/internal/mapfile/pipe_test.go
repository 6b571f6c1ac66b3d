//go:build unix

package mapfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPipe: what cannot be mapped is read to its end.
func TestPipe(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	write := func() {
		if err := os.WriteFile(pipe, []byte("content"), 0o600); err != nil {
			t.Error(err)
		}
	}
	go write()
	if b, err := Read(pipe); err != nil || string(b) != "content" {
		t.Errorf("%q, %v, want the content", b, err)
	}
	go write()
	seen := ""
	if err := With(pipe, func(b []byte) error { seen = string(b); return nil }); err != nil || seen != "content" {
		t.Errorf("%q, %v, want the content", seen, err)
	}
}

func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	use := func([]byte) error { t.Error("used"); return nil }
	for name, want := range map[string]error{filepath.Join(dir, "missing"): fs.ErrNotExist, dir: unix.EISDIR} {
		if b, err := Read(name); !errors.Is(err, want) || len(b) != 0 {
			t.Errorf("read: %d bytes, %v, want none and %v", len(b), err, want)
		}
		if err := With(name, use); !errors.Is(err, want) {
			t.Errorf("with: %v, want %v", err, want)
		}
	}
}

// TestOtherPanics: they go on.
func TestOtherPanics(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if r := recover(); r != "own" {
			t.Errorf("panic %v, want the function's own", r)
		}
	}()
	_ = With(file, func([]byte) error { panic("own") })
	t.Error("the panic is lost")
}
