package rundir

import (
	"context"
	"errors"
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

// TestKillNamesWhatItCannotEnd: the first process that cannot be ended is an error
// with its number, and the next one is not tried.
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
	if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "vm (process 8)") || len(tried) != 2 {
		t.Errorf("tried %v: %v, want EPERM of process 8", tried, err)
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
