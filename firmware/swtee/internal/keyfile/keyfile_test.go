package keyfile

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
)

type value struct{ N string }

// TestOpen: several that open at once get one value, and only one file is left.
func TestOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "er")
	var made atomic.Int64
	values := make([]string, 20)
	var all sync.WaitGroup
	for i := range values {
		all.Go(func() {
			v, err := Open(dir, "keys", func() (*value, error) {
				return &value{strconv.FormatInt(made.Add(1), 10)}, nil
			})
			if err != nil {
				t.Error(err)
				return
			}
			values[i] = v.N
		})
	}
	all.Wait()
	for _, v := range values {
		if v != values[0] || v == "" {
			t.Fatalf("values %q", values)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Errorf("files %v, %v", files, err)
	}
	info, err := os.Stat(filepath.Join(dir, "keys"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", info.Mode(), err)
	}
}

func TestOpenFails(t *testing.T) {
	dir := t.TempDir()
	no := errors.New("no")
	if _, err := Open(dir, "keys", func() (*value, error) { return nil, no }); !errors.Is(err, no) {
		t.Errorf("%v, want what went wrong", err)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 0 {
		t.Errorf("left behind: %v, %v", files, err)
	}
	file := filepath.Join(dir, "keys")
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	var damaged *Damaged
	if _, err := Open(dir, "keys", func() (*value, error) { return &value{}, nil }); !errors.As(err, &damaged) ||
		damaged.File != file {
		t.Errorf("%v, want that the file is damaged", err)
	}
	if _, err := Open(file, "keys", func() (*value, error) { return &value{}, nil }); err == nil {
		t.Error("a file is taken for a directory")
	}
}
