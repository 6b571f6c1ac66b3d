package rundir

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/internal/flock"
)

// heldLock is a lock file that this process holds.
func heldLock(t *testing.T) (*lockFile, *os.File) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "lock")
	f, err := flock.Try(name, unix.O_CREAT, unix.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	l, err := openLock(name, "vm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close(); l.close() })
	return l, f
}

// TestKillNamesWhatItCannotEnd: a process that cannot be ended is an error with its
// number, and does not protect the others.
func TestKillNamesWhatItCannotEnd(t *testing.T) {
	l := &lockFile{name: "vm"}
	var tried []int
	err := l.each([]int{7, 8, 9}, func(pid int) error {
		tried = append(tried, pid)
		if pid == 8 {
			return unix.EPERM
		}
		return nil
	})
	if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "vm (process 8)") || len(tried) != 3 {
		t.Errorf("tried %v: %v, want all three, and EPERM of process 8", tried, err)
	}
	if err := l.each([]int{7, 9}, func(int) error { return nil }); err != nil {
		t.Errorf("all ended: %v", err)
	}
}

// TestKillOfAnUnseenHolder: a lock whose holder cannot be found is not taken for
// free. (This process holds it, which is never among the holders.)
func TestKillOfAnUnseenHolder(t *testing.T) {
	l, f := heldLock(t)
	err := l.killWithin(t.Context(), time.Minute, 20*time.Millisecond)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "cannot be seen") {
		t.Errorf("%v, want that its files cannot be seen", err)
	}
	time.AfterFunc(20*time.Millisecond, func() { _ = f.Close() })
	if err := l.killWithin(t.Context(), time.Minute, time.Minute); err != nil {
		t.Errorf("a holder that goes: %v", err)
	}
}

// TestKillEndsWithItsContext, with an error, though the process may be dead by then.
func TestKillEndsWithItsContext(t *testing.T) {
	l, f := heldLock(t)
	cmd := exec.Command("sleep", "1000")
	cmd.ExtraFiles = []*os.File{f}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.kill(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want Canceled", err)
	}
	_ = cmd.Wait()
}

func TestHeld(t *testing.T) {
	l, f := heldLock(t)
	for _, want := range []bool{true, false, false} {
		if got, err := l.held(); got != want || err != nil {
			t.Errorf("held: %t, %v, want %t", got, err, want)
		}
		if !want { // and the look did not leave a lock
			g, err := flock.Try(l.f.Name(), 0, unix.LOCK_EX)
			if err != nil {
				t.Fatal(err)
			}
			_ = g.Close()
		}
		_ = f.Close()
	}
	l.close()
	if _, err := l.held(); err == nil {
		t.Error("a closed file is free")
	}
	if _, err := l.holders(); err == nil {
		t.Error("a closed file has no holders")
	}
	if err := l.free(t.Context()); err == nil {
		t.Error("a closed file was waited for")
	}
	if _, err := l.open(os.Getpid()); err == nil {
		t.Error("a closed file has a holder")
	}
}

// TestUnseenHolder: a VM whose processes cannot be found has not ended before its lock
// is free. (This process holds it, and is never among the holders.)
func TestUnseenHolder(t *testing.T) {
	dir := t.TempDir()
	r := Root{Run: filepath.Join(dir, "run"), State: filepath.Join(dir, "state")}
	d, err := r.Create(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.OpenProcess(0); !errors.Is(err, ErrNotFound) {
		t.Errorf("the creator: %v, want ErrNotFound", err)
	}
	found, _, err := r.Find(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	if _, err := found.openProcess(0, time.Millisecond); !errors.Is(err, errUnseen) || errors.Is(err, ErrNotFound) {
		t.Errorf("OpenProcess: %v, want that its files cannot be seen", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := found.WaitEnd(ctx, &Entry{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("WaitEnd: %v, want DeadlineExceeded", err)
	}
	time.AfterFunc(20*time.Millisecond, d.DropVMLock)
	if err := found.WaitEnd(t.Context(), &Entry{}); err != nil {
		t.Errorf("WaitEnd of a VM that ends: %v", err)
	}
	if _, err := found.OpenProcess(0); !errors.Is(err, ErrNotFound) {
		t.Errorf("OpenProcess after the end: %v, want ErrNotFound", err)
	}
}

// TestProcessIsClosedOnce: the number of a closed descriptor may be another file's.
func TestProcessIsClosedOnce(t *testing.T) {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	p := &Process{PID: os.Getpid(), fd: fd}
	p.Close()
	r, w, err := os.Pipe() // has the number again
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	p.Close()
	if err := r.Close(); err != nil {
		t.Errorf("another file was closed: %v", err)
	}
	if err := p.Wait(t.Context()); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Wait: %v, want ErrClosed", err)
	}
	if err := p.Signal(0); !errors.Is(err, unix.EBADF) {
		t.Errorf("Signal: %v, want EBADF", err)
	}
}
