//go:build unix

package regular

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRead(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(os.WriteFile(at("file"), []byte("12345"), 0o600), os.Symlink("file", at("link")),
		os.Symlink("nowhere", at("dangling")), unix.Mkfifo(at("pipe"), 0o600), os.Mkdir(at("dir"), 0o700),
		unix.Mknod(at("socket"), unix.S_IFSOCK|0o600, 0)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]struct{ follow, noFollow error }{
		"file":     {nil, nil},
		"link":     {nil, ErrNotRegular},
		"dangling": {fs.ErrNotExist, ErrNotRegular},
		"missing":  {fs.ErrNotExist, fs.ErrNotExist},
		"pipe":     {ErrNotRegular, ErrNotRegular},
		"dir":      {ErrNotRegular, ErrNotRegular},
		"socket":   {ErrNotRegular, ErrNotRegular},
	} {
		b, err := Read(at(name), 5)
		if !errors.Is(err, want.follow) || err == nil && string(b) != "12345" {
			t.Errorf("Read(%s) = %q, %v, want error %v", name, b, err, want.follow)
		}
		if b, err = ReadNoFollow(at(name), 5); !errors.Is(err, want.noFollow) || err == nil && string(b) != "12345" {
			t.Errorf("ReadNoFollow(%s) = %q, %v, want error %v", name, b, err, want.noFollow)
		}
	}
	if _, err := Read(at("file"), 4); !errors.Is(err, ErrTooLarge) {
		t.Errorf("over the limit: %v", err)
	}
	if _, err := Read("/dev/null", 4); !errors.Is(err, ErrNotRegular) {
		t.Errorf("a device: %v", err)
	}
}
