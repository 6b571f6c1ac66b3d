package rundir_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/rundir"
)

func TestFiftyCreatesOneWinner(t *testing.T) {
	r := root(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var won []*rundir.Dir
	for range 50 {
		wg.Go(func() {
			d, err := r.Create(t.Context(), "a")
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				won = append(won, d)
			case !errors.Is(err, rundir.ErrExists):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Fatalf("%d winners", len(won))
	}
	if err := won[0].Discard(); err != nil {
		t.Error(err)
	}
	if _, _, err := r.Find(t.Context(), "a"); !errors.Is(err, rundir.ErrNotFound) {
		t.Errorf("after Discard: %v", err)
	}
}

// TestManyCommandsAtOnce: listing, sweeping and opening at once never costs a
// living VM or confuses it.
func TestManyCommandsAtOnce(t *testing.T) {
	r := root(t)
	d := create(t, r, "a")
	cmd := guest(t, d)
	settle(t, d, cmd.Process.Pid)
	d.Close()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if killed, removed, err := r.Sweep(context.Background()); err != nil || len(killed)+len(removed) > 0 {
					t.Errorf("sweep: %v %v %v", killed, removed, err)
				}
				if entries, err := r.List(t.Context(), false); err != nil || len(entries) != 1 ||
					entries[0].Status() != rundir.Alive {
					t.Errorf("list: %+v, %v", entries, err)
				}
				d, _, err := r.Open(t.Context(), "a", time.Minute)
				if err != nil {
					t.Error(err)
					return
				}
				d.Close()
			}
		})
	}
	wg.Wait()
	if err := cmd.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("the VM: %v", err)
	}
}

// TestForeignDirectoriesAreLeftAlone: a run directory may be set to one that
// holds other things.
func TestForeignDirectoriesAreLeftAlone(t *testing.T) {
	r := root(t)
	thesis := filepath.Join(r.Run, "Documents", "thesis.tex")
	if err := os.MkdirAll(filepath.Dir(thesis), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(thesis, []byte("years"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Sweep(context.Background()); err != nil {
		t.Error(err)
	}
	if entries, err := r.List(t.Context(), true); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v", entries, err)
	}
	if _, err := r.Create(t.Context(), "Documents"); err == nil {
		t.Error("a foreign directory becomes a VM's")
	}
	d := create(t, r, "a")
	settle(t, d, 0)
	if err := os.WriteFile(d.Path("notes.txt"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Close()
	_, _, _ = r.Sweep(context.Background())
	if b, err := os.ReadFile(thesis); err != nil || string(b) != "years" {
		t.Errorf("the foreign file: %q, %v", b, err)
	}
	if found, _ := filepath.Glob(filepath.Join(r.Run, "*", "notes.txt")); len(found) == 0 {
		if found, _ = filepath.Glob(filepath.Join(r.Run, ".*", "notes.txt")); len(found) == 0 {
			t.Error("a foreign file in a VM's directory is removed")
		}
	}
}

// TestInterruptedCreateAndRemoval leave directories under other names, which
// the next command removes.
func TestInterruptedCreateAndRemoval(t *testing.T) {
	r := root(t)
	for _, dir := range []string{".new-a", ".old-b"} {
		if err := os.MkdirAll(filepath.Join(r.Run, dir), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(r.Run, dir, rundir.LaunchLock), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := r.Sweep(context.Background()); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(r.Run, ".[no]*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestLooksAreNotInTheWay: a command that only looks at a VM, without the global lock,
// does not make it busy for others.
func TestLooksAreNotInTheWay(t *testing.T) {
	r := root(t)
	start(t, r, "a")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if e, err := r.Peek("a"); err != nil || e.Status() == rundir.Ended {
					t.Errorf("Peek: %+v, %v", e, err)
				}
			}
		})
	}
	for range 200 {
		d, _, err := r.Open(t.Context(), "a", 0)
		if err != nil {
			t.Fatalf("Open: %v", err)
		}
		d.Close()
	}
}
