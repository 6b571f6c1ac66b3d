package rundir

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// asUser makes files be opened as another user by this thread alone, where this one is root, whom
// a mode does not stop (setfsuid(2)).
func asUser(t *testing.T, dir string) {
	t.Helper()
	runtime.LockOSThread() // the thread ends with the test
	if os.Geteuid() != 0 {
		return
	}
	const nobody = 65534
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	for d := filepath.Dir(dir); d != filepath.Clean(os.TempDir()) && d != "/"; d = filepath.Dir(d) { // the test's own
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	for _, call := range []uintptr{unix.SYS_SETFSGID, unix.SYS_SETFSUID} {
		_, _, _ = unix.RawSyscall(call, nobody, 0, 0)
	}
}

// TestRemoveTree: what a QEMU made in the way of its directory's end goes with it.
func TestRemoveTree(t *testing.T) {
	if err := removeTree(filepath.Join(t.TempDir(), "none")); err != nil {
		t.Error(err)
	}
	for name, mode := range map[string]uint32{"closed": 0, "write only": 0o300, "read only": 0o500} {
		outside := filepath.Join(t.TempDir(), "kept")
		if err := os.WriteFile(outside, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		work := t.TempDir()
		done := make(chan error)
		go func() {
			asUser(t, work)
			top := filepath.Join(work, "tree")
			done <- func() error {
				if err := os.Mkdir(top, 0o700); err != nil {
					return err
				}
				if err := grow(top, outside, mode); err != nil {
					return err
				}
				return removeTree(top)
			}()
		}()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if left, _ := os.ReadDir(work); len(left) > 0 {
			t.Errorf("%s: left %v", name, left)
		}
		if _, err := os.Stat(outside); err != nil {
			t.Errorf("%s: what a link leads to is gone", name)
		}
	}
}

// grow makes directories in each other, deeper than a path can say, with a file, a link and a name
// that the removal may want for itself in each.
func grow(top, outside string, mode uint32) error {
	at, err := unix.Open(top, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	name := strings.Repeat("d", 50)
	for range 200 {
		fd, err := unix.Openat(at, "file", unix.O_CREAT|unix.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_ = unix.Close(fd)
		if err := unix.Symlinkat(outside, at, "link"); err != nil {
			return err
		}
		for _, dir := range []string{name, "moved0", "moved7"} {
			if err := unix.Mkdirat(at, dir, 0o700); err != nil {
				return err
			}
		}
		next, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		if err := unix.Fchmodat(at, "moved7", mode, 0); err != nil {
			return err
		}
		// Its mode is taken away only when all that it holds is made.
		defer func() {
			_ = unix.Fchmod(next, mode)
			_ = unix.Close(next)
		}()
		at = next
	}
	return nil
}
