package mapfile

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"
)

func TestWith(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	want := bytes.Repeat([]byte{7}, 1<<20)
	if err := os.WriteFile(file, want, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := With(file, func(b []byte) error {
		if !bytes.Equal(b, want) {
			t.Error("other content")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	sum := 0
	err := With(file, func(b []byte) error { // shortened meanwhile
		if err := os.Truncate(file, 10); err != nil {
			return err
		}
		for _, c := range b {
			sum += int(c)
		}
		return nil
	})
	if !errors.Is(err, ErrChanged) {
		t.Errorf("a file that became shorter: %v (%d)", err, sum)
	}
	if err := With(os.DevNull, func(b []byte) error {
		if len(b) != 0 {
			t.Errorf("%d bytes", len(b))
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if err := With(file+"x", nil); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	want := bytes.Repeat([]byte{7}, 1<<20)
	if err := os.WriteFile(file, want, 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := Read(file)
	if err != nil || !bytes.Equal(b, want) {
		t.Fatal(len(b), err)
	}
	if err := os.Truncate(file, 10); err != nil {
		t.Fatal(err)
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); !IsChange(r) {
			t.Errorf("a file that became shorter: %v", r)
		}
	}()
	t.Errorf("read %d behind the end", b[len(b)-1])
}
