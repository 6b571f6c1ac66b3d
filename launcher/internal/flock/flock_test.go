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
	"testing/synctest"
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

// TestOpenWaits: a lock is taken when its holder is gone, and not before.
func TestOpenWaits(t *testing.T) {
	name := lockFile(t)
	held := take(t, name)
	var closed atomic.Bool
	time.AfterFunc(20*time.Millisecond, func() { closed.Store(true); _ = held.Close() })
	f, err := Open(t.Context(), name, 0, unix.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if !closed.Load() {
		t.Error("the lock was taken while it was held")
	}
	if _, err := Try(name, 0, unix.LOCK_SH); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("a look at the lock: %v, want EWOULDBLOCK", err)
	}
}

// TestSoon: a lock is had soon after it is free, however long it was held, and until
// then it is looked at less and less often. (The clock is that of the bubble.)
func TestSoon(t *testing.T) {
	for _, c := range []struct {
		held        time.Duration
		late        time.Duration // at most
		least, most int           // looks
	}{
		{0, 0, 1, 1},
		{time.Millisecond, 2 * time.Millisecond, 4, 5},
		{time.Second, 3 * lastDelay / 2, 20, 50},
		{time.Minute, 3 * lastDelay / 2, 800, 2410},
	} {
		synctest.Test(t, func(t *testing.T) {
			begun, looks := time.Now(), 0
			err := poll(t.Context(), func() (bool, error) { looks++; return time.Since(begun) >= c.held, nil })
			if late := time.Since(begun) - c.held; err != nil || late > c.late {
				t.Errorf("held for %v: had after another %v, %v, want at most %v", c.held, late, err, c.late)
			}
			if looks < c.least || looks > c.most {
				t.Errorf("held for %v: %d looks, want %d to %d", c.held, looks, c.least, c.most)
			}
		})
	}
}

// TestWaitersLookApart: of many that began at once, few look at the same time.
func TestWaitersLookApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var mu sync.Mutex
		looks, at := 0, map[time.Time]bool{}
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				err := poll(ctx, func() (bool, error) {
					mu.Lock()
					defer mu.Unlock()
					looks++
					at[time.Now()] = true
					return false, nil
				})
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%v, want DeadlineExceeded", err)
				}
			})
		}
		wg.Wait()
		if len(at) < looks*9/10 {
			t.Errorf("%d looks at %d times, want nearly as many times", looks, len(at))
		}
	})
}

// TestPollEnds at once: with its context, and with a look that fails.
func TestPollEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 12345*time.Millisecond)
		defer cancel()
		err := poll(ctx, func() (bool, error) { return false, nil })
		if took := time.Since(begun); !errors.Is(err, context.DeadlineExceeded) || took != 12345*time.Millisecond {
			t.Errorf("%v after %v, want DeadlineExceeded after 12.345s", err, took)
		}
		if err := poll(t.Context(), func() (bool, error) { return false, unix.EBADF }); !errors.Is(err, unix.EBADF) {
			t.Errorf("a look that fails: %v, want EBADF", err)
		}
	})
}

// TestReadOnly: a lock can be held by a descriptor that nothing can be written to.
func TestReadOnly(t *testing.T) {
	f := take(t, lockFile(t))
	if _, err := f.WriteString("x"); !errors.Is(err, unix.EBADF) {
		t.Errorf("a write to a lock file: %v, want EBADF", err)
	}
	f, err := Try(lockFile(t), unix.O_CREAT|unix.O_RDWR, unix.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("x"); err != nil {
		t.Errorf("a write to a file opened with O_RDWR: %v", err)
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
		_, err := Open(ctx, name, 0, unix.LOCK_EX)
		cancel()
		var at *fs.PathError
		if !errors.Is(err, want) || !errors.As(err, &at) || at.Op != "lock" {
			t.Errorf("%s: %v, want %v", what, err, want)
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
	if err := Control(nil, func(int) error { t.Error("called"); return nil }); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("no file: %v, want ErrInvalid", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := Wait(ctx, r, unix.LOCK_EX); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Wait: %v, want ErrClosed", err)
	}
}
