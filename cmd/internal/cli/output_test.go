//go:build unix

package cli

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// commit writes a secret file, and returns what is left in its directory.
func commit(t *testing.T, name, text string, commit func(*Output, []byte) error) ([]fs.DirEntry, error) {
	t.Helper()
	o, err := PrepareSecret(name)
	if err != nil {
		return nil, err
	}
	err = commit(o, []byte(text))
	o.Discard()
	entries, err2 := os.ReadDir(filepath.Dir(name))
	if err2 != nil {
		t.Fatal(err2)
	}
	return entries, err
}

// TestSecretFile runs with and without files that have no name.
func TestSecretFile(t *testing.T) {
	for name, named := range map[string]bool{"unnamed": false, "named": true} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(ownDir(t), "key")
			prepare := func(text string, publish func(*Output, []byte) error) ([]fs.DirEntry, error) {
				return commit(t, file, text, func(o *Output, b []byte) error {
					if named && o.staged.temp == "" {
						o.staged.temp = o.staged.random()
						f, err := o.staged.dir.OpenFile(o.staged.temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
						if err != nil {
							return err
						}
						_ = o.staged.file.Close()
						o.staged.file = f
					}
					return publish(o, b)
				})
			}
			entries, err := prepare("one", (*Output).CommitNew)
			if err != nil || len(entries) != 1 {
				t.Fatalf("%d files, %v, want one", len(entries), err)
			}
			if entries, err = prepare("two", (*Output).CommitNew); !errors.Is(err, fs.ErrExist) || len(entries) != 1 {
				t.Errorf("%d files, %v, want one and that it exists", len(entries), err)
			}
			if b, _ := os.ReadFile(file); string(b) != "one" {
				t.Errorf("content %q, want the first", b)
			}
			if entries, err = prepare("three", (*Output).Commit); err != nil || len(entries) != 1 {
				t.Errorf("%d files, %v, want one", len(entries), err)
			}
			info, err := os.Stat(file)
			if err != nil || info.Mode().Perm() != 0o600 || info.Size() != 5 {
				t.Errorf("mode %v, size %d, %v, want 0600 and 5", info.Mode(), info.Size(), err)
			}
		})
	}
}

// TestSecretDirectory: directories in which others could exchange the file.
func TestSecretDirectory(t *testing.T) {
	for mode, refused := range map[fs.FileMode]bool{
		0o700: false, 0o755: false, 0o775: true, 0o777: true, 0o777 | fs.ModeSticky: true,
		0o775 | fs.ModeSetgid: true, 0o702: true,
	} {
		dir := filepath.Join(t.TempDir(), "dir")
		if err := errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, mode)); err != nil {
			t.Fatal(err)
		}
		o, err := PrepareSecret(filepath.Join(dir, "key"))
		o.Discard()
		if (err != nil) != refused || err != nil && !strings.Contains(err.Error(), "others can write to it") {
			t.Errorf("mode %v: %v, want refused: %t", mode, err, refused)
		}
	}
	if os.Geteuid() == 0 {
		dir := t.TempDir()
		if err := os.Chown(dir, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		if _, err := PrepareSecret(filepath.Join(dir, "key")); err == nil ||
			!strings.Contains(err.Error(), "belongs to another user") {
			t.Errorf("another user's directory: %v, want an error", err)
		}
	}
}

// TestPlanted: files that were made beforehand under names like the temporary's are
// neither used nor waited for; the program's own leftovers go after an hour.
func TestPlanted(t *testing.T) {
	dir := ownDir(t)
	for _, name := range []string{".key.new", ".key.new-AAAA", ".key.new-old", ".other.new-old"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("planted"), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	long := time.Now().Add(-2 * leftover)
	for _, name := range []string{".key.new-old", ".other.new-old"} {
		if err := os.Chtimes(filepath.Join(dir, name), long, long); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := commit(t, filepath.Join(dir, "key"), "secret", (*Output).Commit)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		b, _ := os.ReadFile(filepath.Join(dir, e.Name()))
		left = append(left, e.Name()+"="+string(b))
	}
	want := ".key.new=planted .key.new-AAAA=planted .other.new-old=planted key=secret"
	if got := strings.Join(left, " "); got != want {
		t.Errorf("left %s, want %s", got, want)
	}
}

// ownDir is a directory that only this user can write to, whatever the umask.
func ownDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}
