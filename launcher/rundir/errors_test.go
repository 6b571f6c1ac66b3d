package rundir_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// TestRootsThatAreFiles: what cannot be looked at is not taken for empty.
func TestRootsThatAreFiles(t *testing.T) {
	r := root(t)
	if _, _, err := r.Find(t.Context(), "a"); !errors.Is(err, rundir.ErrNotFound) {
		t.Errorf("Find without a run directory: %v, want ErrNotFound", err)
	}
	if _, _, err := r.FindLogs(t.Context(), "a"); !errors.Is(err, rundir.ErrNotFound) {
		t.Errorf("FindLogs without logs: %v, want ErrNotFound", err)
	}
	start(t, r, "a")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if e, err := (rundir.Root{Run: file, State: r.State}).Peek("a"); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("Peek in a file: %+v, %v, want ENOTDIR", e, err)
	}
	bad := rundir.Root{Run: r.Run, State: file}
	_, listed := bad.List(t.Context(), true)
	_, swept := bad.SweepList(t.Context(), true)
	_, created := bad.Create(t.Context(), "b")
	for what, err := range map[string]error{
		"List": listed, "SweepList": swept, "Create": created, "Forget": bad.Forget(t.Context(), "b"),
	} {
		if !errors.Is(err, unix.ENOTDIR) {
			t.Errorf("%s with a file for logs: %v, want ENOTDIR", what, err)
		}
	}
	if _, err := bad.List(t.Context(), false); err != nil {
		t.Errorf("List of what runs: %v", err)
	}
}

// TestSweepKeepsTheWayToHelpers: the directory by which they can be found stays until
// they are known to have ended.
func TestSweepKeepsTheWayToHelpers(t *testing.T) {
	for _, lock := range []string{"helper.lock", "owner.lock"} {
		r := root(t)
		d := create(t, r, "a")
		settle(t, d, 0)
		if err := os.Symlink("/dev/null", d.Path(lock)); err != nil {
			t.Fatal(err)
		}
		d.Close()
		l, err := r.SweepList(t.Context(), false)
		if err != nil || !errors.Is(l.Trouble, unix.ELOOP) || len(l.Entries) != 1 || len(l.Removed) != 0 {
			t.Errorf("%s: %+v, %v, want ELOOP, and the VM in the list", lock, l, err)
		}
		if _, err := r.Create(t.Context(), "a"); !errors.Is(err, unix.ELOOP) {
			t.Errorf("%s: Create: %v, want ELOOP", lock, err)
		}
		if err := r.Forget(t.Context(), "a"); !errors.Is(err, unix.ELOOP) {
			t.Errorf("%s: Forget: %v, want ELOOP", lock, err)
		}
	}
}

// TestNoDescriptors: a command that can open no more files does what it should, or
// fails, and leaves the VM as it was.
func TestNoDescriptors(t *testing.T) {
	r := root(t)
	_, cmd := start(t, r, "a")
	dead := create(t, r, "dead")
	settle(t, dead, 0)
	dead.Close()
	for spare := range 6 {
		for what, do := range map[string]func() (complete bool, err error){
			"Open": func() (bool, error) {
				d, rec, err := r.Open(t.Context(), "a", 0)
				if err != nil {
					return false, err
				}
				defer d.Close()
				return rec != nil && d.Same(d), nil
			},
			"Find": func() (bool, error) {
				d, e, err := r.Find(t.Context(), "a")
				if err != nil {
					return false, err
				}
				defer d.Close()
				return e.Record != nil && d.Same(d), nil
			},
			"Peek": func() (bool, error) {
				e, err := r.Peek("a")
				return e != nil && e.Status() == rundir.Alive, err
			},
			"Create": func() (bool, error) {
				d, err := r.Create(t.Context(), "new")
				if err != nil {
					return false, err
				}
				whole := d.VMLockFile() != nil && d.Same(d)
				return whole, d.Discard()
			},
			"SweepList": func() (bool, error) {
				l, err := r.SweepList(t.Context(), false)
				return len(l.Entries) > 0 && l.Entries[0].Name == "a", errors.Join(err, l.Trouble)
			},
		} {
			free := fill(t, spare)
			complete, err := do()
			free()
			if err == nil && !complete {
				t.Errorf("%s with %d descriptors: neither complete nor an error", what, spare)
			}
			if err != nil && (!errors.Is(err, unix.EMFILE) || errors.Is(err, rundir.ErrNotFound)) {
				t.Errorf("%s with %d descriptors: %v, want EMFILE", what, spare, err)
			}
		}
	}
	free := fill(t, 0)
	_, err := dead.StagedRecord()
	free()
	if !errors.Is(err, unix.EMFILE) {
		t.Errorf("a staged record without descriptors: %v, want EMFILE", err)
	}
	if s := status(t, r, "a"); s != rundir.Alive || !alive(t, cmd) {
		t.Errorf("the VM is %s, want alive", s)
	}
}

// TestDiscardThatFails names what is left.
func TestDiscardThatFails(t *testing.T) {
	r := root(t)
	d := create(t, r, "a")
	foreign := filepath.Join(d.LogPath(rundir.ConsoleLog), "notes.txt")
	if err := errors.Join(os.Mkdir(filepath.Dir(foreign), 0o700), os.WriteFile(foreign, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := d.Discard(); !errors.Is(err, unix.ENOTEMPTY) {
		t.Errorf("a directory in place of a log: %v, want ENOTEMPTY", err)
	}
	if _, err := os.Lstat(d.Run); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the run directory: %v, want that it is gone", err)
	}
	d = create(t, r, "b")
	old := filepath.Join(r.Run, ".old-b")
	if err := errors.Join(os.Mkdir(old, 0o700), os.WriteFile(filepath.Join(old, "notes.txt"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := d.Discard(); !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		t.Errorf("a foreign file in its place: %v, want ENOTEMPTY", err)
	}
	if _, err := os.Lstat(d.Run); err != nil {
		t.Errorf("the run directory: %v, want that it is still there", err)
	}
}
