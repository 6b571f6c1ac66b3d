package flock

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/integration/leak"
)

func TestMain(m *testing.M) { leak.VerifyTestMain(m) }

func lockFile(t *testing.T) string { return filepath.Join(t.TempDir(), "lock") }

func take(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := Try(name, unix.O_CREAT, unix.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestTry(t *testing.T) {
	name := lockFile(t)
	if _, err := Try(name, 0, unix.LOCK_SH); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v, want ErrNotExist", err)
	}
	f := take(t, name)
	var at *fs.PathError
	if _, err := Try(name, 0, unix.LOCK_SH); !errors.Is(err, unix.EWOULDBLOCK) || !errors.As(err, &at) ||
		at.Path != name {
		t.Errorf("a lock that is held: %v, want EWOULDBLOCK and the path", err)
	}
	_ = f.Close()
	var shared []*os.File
	for range 2 {
		f, err := Try(name, 0, unix.LOCK_SH)
		if err != nil {
			t.Fatalf("a shared lock: %v", err)
		}
		shared = append(shared, f)
	}
	if _, err := Try(name, 0, unix.LOCK_EX); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("an exclusive lock next to shared ones: %v, want EWOULDBLOCK", err)
	}
	for _, f := range shared {
		_ = f.Close()
	}
	link := lockFile(t)
	if err := os.Symlink(name, link); err != nil {
		t.Fatal(err)
	}
	for what, open := range map[string]func() (*os.File, error){
		"Try":  func() (*os.File, error) { return Try(link, unix.O_CREAT, unix.LOCK_EX) },
		"Open": func() (*os.File, error) { return Open(t.Context(), link, unix.O_CREAT, unix.LOCK_EX) },
	} {
		if _, err := open(); !errors.Is(err, unix.ELOOP) {
			t.Errorf("%s: a link: %v, want ELOOP", what, err)
		}
	}
}

// TestOpenWaits: a lock is taken as soon as its holder is gone, long before the
// next look that needs no event.
func TestOpenWaits(t *testing.T) {
	name := lockFile(t)
	held := take(t, name)
	var closed atomic.Int64
	time.AfterFunc(1500*time.Millisecond, func() { closed.Store(time.Now().UnixNano()); _ = held.Close() })
	f, err := Open(t.Context(), name, 0, unix.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	late := time.Since(time.Unix(0, closed.Load()))
	_ = f.Close()
	if closed.Load() == 0 {
		t.Fatal("the lock was taken while it was held")
	}
	if late > longest/2 {
		t.Errorf("the lock was taken %v after it was free, want at once", late)
	}
}

// TestOpenWaitsForAProcess: a lock that a killed process had inherited is free.
func TestOpenWaitsForAProcess(t *testing.T) {
	name := lockFile(t)
	held := take(t, name)
	cmd := exec.Command("sleep", "1000")
	cmd.ExtraFiles = []*os.File{held}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = held.Close()
	time.AfterFunc(20*time.Millisecond, func() { _ = cmd.Process.Kill() })
	f, err := Open(t.Context(), name, 0, unix.LOCK_SH)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	_ = cmd.Wait()
}

func TestOpenEndsWithItsContext(t *testing.T) {
	name := lockFile(t)
	take(t, name)
	for what, want := range map[string]error{"deadline": context.DeadlineExceeded, "cancel": context.Canceled} {
		ctx, cancel := context.WithCancel(t.Context())
		if what == "deadline" {
			ctx, cancel = context.WithTimeout(t.Context(), 30*time.Millisecond)
		} else {
			time.AfterFunc(30*time.Millisecond, cancel)
		}
		start := time.Now()
		_, err := Open(ctx, name, 0, unix.LOCK_EX)
		cancel()
		var at *fs.PathError
		if !errors.Is(err, want) || !errors.As(err, &at) || at.Op != "lock" {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
		if took := time.Since(start); took > longest/2 {
			t.Errorf("%s: the wait ended after %v, want 30ms", what, took)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, name, 0, unix.LOCK_EX); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that has ended: %v, want Canceled", err)
	}
	free := lockFile(t)
	f, err := Open(ctx, free, unix.O_CREAT, unix.LOCK_EX)
	if err != nil {
		t.Fatalf("a free lock: %v, want it: nothing has to be waited for", err)
	}
	_ = f.Close()
}

// TestWithoutWatch: a kernel that gives no watch costs time only.
func TestWithoutWatch(t *testing.T) {
	w := &watch{lock: os.NewFile(^uintptr(0), "closed")}
	w.open()
	if w.events != nil || !w.blind {
		t.Fatalf("a watch of nothing: %+v", w)
	}
	defer w.close()
	w.begun = time.Now().Add(-brief)
	start := time.Now()
	w.wait(t.Context())
	if took := time.Since(start); took < blindly/2 {
		t.Errorf("waited %v, want at least %v", took, blindly/2)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	start = time.Now()
	for range 100 {
		w.wait(ctx)
	}
	if took := time.Since(start); took > 20*blindly {
		t.Errorf("waited %v a hundred times with a context that has ended, want no wait", took)
	}
}

// TestLooksDoNotWake: a process that looks whether a lock is held must not make those
// that wait for it look too, and these each other.
func TestLooksDoNotWake(t *testing.T) {
	name := lockFile(t)
	w := &watch{lock: take(t, name)}
	w.open()
	defer w.close()
	for range 10 {
		_, _ = Try(name, 0, unix.LOCK_SH)
	}
	if w.closed(t.Context(), 10*time.Millisecond) {
		t.Error("a look woke a waiter")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if w.closed(ctx, time.Hour) {
		t.Error("the end of a context was taken for a close")
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if !w.closed(t.Context(), 10*time.Second) {
		t.Error("a close of the file did not wake a waiter")
	}
}

// TestFewLooks: a lock that is held for long is looked at often for a moment only.
func TestFewLooks(t *testing.T) {
	w := &watch{lock: take(t, lockFile(t))}
	defer w.close()
	looks := 0
	for end := time.Now().Add(brief + longest/2); time.Now().Before(end); looks++ {
		w.wait(t.Context())
	}
	if most := 2 + int(brief/lastDelay)*2 + 10; looks > most {
		t.Errorf("%d looks in %v, want at most %d", looks, brief+longest/2, most)
	}
}

// TestManyWaiters: of many that want a lock each gets it once.
func TestManyWaiters(t *testing.T) {
	name := lockFile(t)
	held := take(t, name)
	var inside, most, got atomic.Int32
	var wg sync.WaitGroup
	for range 30 {
		wg.Go(func() {
			f, err := Open(t.Context(), name, unix.O_CREAT, unix.LOCK_EX)
			if err != nil {
				t.Error(err)
				return
			}
			most.Store(max(most.Load(), inside.Add(1)))
			got.Add(1)
			inside.Add(-1)
			_ = f.Close()
		})
	}
	time.Sleep(10 * time.Millisecond)
	_ = held.Close()
	wg.Wait()
	if got.Load() != 30 || most.Load() != 1 {
		t.Errorf("%d got the lock, %d at once, want 30, 1", got.Load(), most.Load())
	}
}

// TestNothingIsLeft: a hundred waits that were given up leave no goroutine and no
// descriptor.
func TestNothingIsLeft(t *testing.T) {
	name := lockFile(t)
	take(t, name)
	before := leak.Descriptors(t)
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			defer cancel()
			if _, err := Open(ctx, name, 0, unix.LOCK_EX); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	goleak.VerifyNone(t, goleak.IgnoreCurrent())
	if after := leak.Descriptors(t); after != before {
		t.Errorf("%d descriptors are open, want %d as before", after, before)
	}
}

// TestControlKeepsOpen: a file that is closed meanwhile is an error, not another
// file of the same number.
func TestControlKeepsOpen(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	_ = r.Close()
	if err := Control(r, func(int) error { t.Error("called"); return nil }); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("%v, want ErrClosed", err)
	}
}
