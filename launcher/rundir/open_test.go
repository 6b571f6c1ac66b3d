package rundir_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// soon is far less than what would be waited for otherwise, and far more than a busy
// machine needs.
const soon = 20 * time.Second

// TestOpenEnds: at its bound it is busy, at the context's end it is that.
func TestOpenEnds(t *testing.T) {
	r := root(t)
	start(t, r, "a")
	d, rec, err := r.Open(t.Context(), "a", 0)
	if err != nil || rec.State != "running" {
		t.Fatalf("record %+v, %v, want state running", rec, err)
	}
	defer d.Close()
	for _, wait := range []time.Duration{-time.Second, 0, 20 * time.Millisecond} {
		begun := time.Now()
		if _, _, err := r.Open(t.Context(), "a", wait); !errors.Is(err, rundir.ErrBusy) {
			t.Errorf("wait %v: %v, want ErrBusy", wait, err)
		}
		if took := time.Since(begun); took < wait || took > soon {
			t.Errorf("wait %v: took %v, want that or little more", wait, took)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	begun := time.Now()
	if _, _, err := r.Open(ctx, "a", time.Minute); !errors.Is(err, context.Canceled) ||
		!strings.HasPrefix(err.Error(), "a: ") {
		t.Errorf("cancelled: %v, want Canceled of a", err)
	}
	if took := time.Since(begun); took > soon {
		t.Errorf("cancelled: took %v, want 20ms", took)
	}
}

// TestOpenGoesOn: a command that waits goes on when the other one ends, and not before.
func TestOpenGoesOn(t *testing.T) {
	r := root(t)
	start(t, r, "a")
	d, _, err := r.Open(t.Context(), "a", 0)
	if err != nil {
		t.Fatal(err)
	}
	freed := make(chan struct{})
	time.AfterFunc(100*time.Millisecond, func() { close(freed); d.Close() })
	again, _, err := r.Open(t.Context(), "a", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	select {
	case <-freed:
	default:
		t.Error("opened while the other command was at work")
	}
}

// TestOpenOfWhatIsNotAlive: a VM that ends while it is waited for has ended.
func TestOpenOfWhatIsNotAlive(t *testing.T) {
	r := root(t)
	open := func() error {
		d, _, err := r.Open(t.Context(), "a", time.Minute)
		if err == nil {
			d.Close()
		}
		return err
	}
	if err := open(); !errors.Is(err, rundir.ErrNotFound) || errors.Is(err, rundir.ErrEnded) {
		t.Errorf("no run directory: %v, want ErrNotFound", err)
	}
	d := create(t, r, "a")
	time.AfterFunc(20*time.Millisecond, func() { _ = d.Discard() })
	if err := open(); !errors.Is(err, rundir.ErrNotFound) || errors.Is(err, rundir.ErrEnded) {
		t.Errorf("a launch that was given up: %v, want ErrNotFound", err)
	}
	_, cmd := start(t, r, "a")
	end(cmd)
	if err := open(); !errors.Is(err, rundir.ErrNotFound) {
		t.Errorf("ended: %v, want ErrNotFound", err)
	}
	if _, _, err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := open(); !errors.Is(err, rundir.ErrEnded) {
		t.Errorf("ended and cleared away: %v, want ErrEnded", err)
	}
	abandoned, err := r.Create(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	guest(t, abandoned)
	abandoned.Close()
	if err := open(); !errors.Is(err, rundir.ErrNotFound) {
		t.Errorf("abandoned: %v, want ErrNotFound", err)
	}
}

// TestGlobalLock: a process that is stopped while it has the run directory's lock
// must not hang those that come after it for ever.
func TestGlobalLock(t *testing.T) {
	r := root(t)
	start(t, r, "a")
	lock, err := os.OpenFile(filepath.Join(r.Run, ".lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, _, err := r.Open(ctx, "a", time.Minute); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Open: %v, want DeadlineExceeded", err)
	}
	if _, err := r.SweepList(ctx, false); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("SweepList: %v, want DeadlineExceeded", err)
	}
}

func TestNames(t *testing.T) {
	r := root(t)
	for _, good := range []string{"a", "A.b_c-1", strings.Repeat("x", 63)} {
		if err := rundir.CheckName(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", ".", "..", "a/b", "-x", ".x", strings.Repeat("a", 64), "a b", "a\n"} {
		_, created := r.Create(t.Context(), bad)
		_, _, opened := r.Open(t.Context(), bad, 0)
		_, _, found := r.Find(t.Context(), bad)
		_, _, logs := r.FindLogs(t.Context(), bad)
		_, peeked := r.Peek(bad)
		for what, err := range map[string]error{
			"CheckName": rundir.CheckName(bad), "Create": created, "Open": opened, "Find": found, "FindLogs": logs,
			"Peek": peeked, "Forget": r.Forget(t.Context(), bad),
		} {
			if err == nil || errors.Is(err, rundir.ErrNotFound) {
				t.Errorf("%s(%q): %v, want that it cannot be a name", what, bad, err)
			}
		}
	}
}

func TestPeek(t *testing.T) {
	r := root(t)
	if e, err := r.Peek("a"); e != nil || err != nil {
		t.Errorf("nothing: %+v, %v, want nil", e, err)
	}
	if _, err := os.Lstat(r.Run); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the run directory: %v, want that it was not made", err)
	}
	start(t, r, "a")
	if e, err := r.Peek("a"); err != nil || e.Status() != rundir.Alive {
		t.Errorf("%+v, %v, want alive", e, err)
	}
	if err := os.WriteFile(filepath.Join(r.Run, "b"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Peek("b"); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("a file: %v, want that it is not a directory", err)
	}
}

func TestConsoleHasOneClient(t *testing.T) {
	r := root(t)
	d, _ := start(t, r, "a")
	lock, err := d.LockConsole()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.LockConsole(); !errors.Is(err, rundir.ErrBusy) {
		t.Errorf("a second client: %v, want ErrBusy", err)
	}
	_ = lock.Close()
	if lock, err = d.LockConsole(); err != nil {
		t.Fatalf("after the first: %v", err)
	}
	_ = lock.Close()
}

func TestUsable(t *testing.T) {
	r := root(t)
	if err := r.Usable("a"); err != nil {
		t.Errorf("directories that can be made: %v", err)
	}
	if _, err := os.Lstat(r.Run); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the run directory: %v, want that it was not made", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	long := rundir.Root{Run: "/tmp/" + strings.Repeat("x", 100), State: r.State}
	if err := long.Usable("a"); err == nil || !strings.Contains(err.Error(), "at most 107") {
		t.Errorf("a long path: %v, want the longest that is possible", err)
	}
	for what, bad := range map[string]rundir.Root{
		"run below a file":   {Run: file + "/run", State: r.State},
		"state below a file": {Run: r.Run, State: file + "/state"},
		"run is a file":      {Run: file, State: r.State}, "run in proc": {Run: "/proc/vmlatch", State: r.State},
	} {
		err := bad.Usable("a")
		if what == "run in proc" && os.Geteuid() == 0 {
			continue // permissions do not bind root
		}
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	if err := (rundir.Root{Run: file, State: r.State}).Usable("a"); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("run is a file: %v, want ENOTDIR", err)
	}
}
