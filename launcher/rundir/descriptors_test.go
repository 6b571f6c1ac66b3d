package rundir_test

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/integration/leak"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// TestNothingIsLeftOpen: what is opened again and again is closed again and again,
// though the collector is off (see TestMain).
func TestNothingIsLeftOpen(t *testing.T) {
	r := root(t)
	start(t, r, "a")
	bad := rundir.Root{Run: r.Run, State: "/dev/null/state"}
	for what, do := range map[string]func() error{
		"Open and Close": func() error {
			d, _, err := r.Open(t.Context(), "a", time.Second)
			if err == nil {
				d.Close()
			}
			return err
		},
		"Find, AwaitLaunch and Close": func() error {
			d, _, err := r.Find(t.Context(), "a")
			if err != nil {
				return err
			}
			defer d.Close()
			return d.AwaitLaunch(t.Context())
		},
		"FindLogs, KillOwner, Same": func() error {
			d, _, err := r.FindLogs(t.Context(), "a")
			if err != nil {
				return err
			}
			defer d.Close()
			if !d.Same(d) {
				return errors.New("not the same")
			}
			return d.KillOwner(t.Context())
		},
		"a busy Open": func() error {
			d, _, err := r.Open(t.Context(), "a", time.Second)
			if err != nil {
				return err
			}
			defer d.Close()
			if _, _, err := r.Open(t.Context(), "a", time.Millisecond); !errors.Is(err, rundir.ErrBusy) {
				return err
			}
			return nil
		},
		"a Create that fails": func() error {
			if _, err := bad.Create(t.Context(), "b"); err == nil {
				return errors.New("created")
			}
			return nil
		},
		"Create and Discard": func() error {
			d, err := r.Create(t.Context(), "c")
			if err != nil {
				return err
			}
			return d.Discard()
		},
		"Create and Sweep": func() error {
			d, err := r.Create(t.Context(), "d")
			if err != nil {
				return err
			}
			d.Close()
			_, removed, err := r.Sweep(t.Context())
			if len(removed) != 1 {
				return errors.Join(err, errors.New(strconv.Itoa(len(removed))+" removed, want 1"))
			}
			return err
		},
		"lists": func() error {
			_, err := r.SweepList(t.Context(), true)
			_, peeked := r.Peek("a")
			return errors.Join(err, peeked)
		},
	} {
		before := leak.Descriptors(t)
		for range 50 {
			if err := do(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
		if after := leak.Descriptors(t); after != before {
			t.Errorf("%s: %d descriptors are open, want %d as before", what, after, before)
		}
	}
}

// fill leaves a number of descriptors that this process can open, until free is called.
func fill(t *testing.T, spare int) (free func()) {
	t.Helper()
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 100, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	var fds []int
	for {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			break
		}
		fds = append(fds, fd)
	}
	for range spare {
		_ = unix.Close(fds[0])
		fds = fds[1:]
	}
	return func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
			t.Error(err)
		}
	}
}

// expired is a context that has ended.
func expired(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}
