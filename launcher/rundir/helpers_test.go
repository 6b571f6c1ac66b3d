package rundir_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// helper is a process that inherits the lock of a VM's helpers.
func helper(t *testing.T, d *rundir.Dir) *exec.Cmd {
	t.Helper()
	lock, err := d.LockHelpers()
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	cmd := exec.Command("sleep", "1000")
	cmd.ExtraFiles = []*os.File{lock}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// killed checks that a process has been killed, and not only that it can be.
func killed(t *testing.T, what string, cmd *exec.Cmd) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err == nil {
			t.Errorf("%s: the process ended well, want killed", what)
		}
	case <-time.After(soon):
		t.Errorf("%s: the process is still running, want killed", what)
		_ = cmd.Process.Kill()
		<-ended
	}
}

// TestHelpersGoWithTheDirectory: without it they could not be found any more.
func TestHelpersGoWithTheDirectory(t *testing.T) {
	for what, clear := range map[string]func(rundir.Root) error{
		"Sweep":  func(r rundir.Root) error { _, _, err := r.Sweep(t.Context()); return err },
		"Forget": func(r rundir.Root) error { return r.Forget(t.Context(), "a") },
		"Create": func(r rundir.Root) error {
			d, err := r.Create(t.Context(), "a")
			if err == nil {
				d.Close()
			}
			return err
		},
	} {
		r := root(t)
		d := create(t, r, "a")
		settle(t, d, 0)
		h := helper(t, d)
		d.Close() // the launcher dies, and so does QEMU
		if err := clear(r); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		killed(t, what, h)
	}
}

// TestHelpersOfALaterVM are not those of the one that a Dir is about.
func TestHelpersOfALaterVM(t *testing.T) {
	r := root(t)
	d, cmd := start(t, r, "a")
	found := find(t, r, "a")
	first := helper(t, d)
	end(cmd)
	if err := found.KillHelpers(t.Context()); err != nil {
		t.Fatal(err)
	}
	killed(t, "KillHelpers", first)
	if _, _, err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	later := create(t, r, "a")
	second := helper(t, later)
	for what, old := range map[string]*rundir.Dir{"created": d, "found": found} {
		if err := errors.Join(old.KillHelpers(t.Context()), old.KillOwner(t.Context())); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if !alive(t, second) {
		t.Error("a later VM's helper was killed")
	}
	if err := later.KillHelpers(t.Context()); err != nil {
		t.Fatal(err)
	}
	killed(t, "of the later VM", second)
}

// TestFewDescriptors: a process that cannot open files does not take a VM that is alive
// for one that has ended.
func TestFewDescriptors(t *testing.T) {
	r := root(t)
	d, cmd := start(t, r, "a")
	for spare := range 4 {
		free := fill(t, spare)
		err := d.WaitEnd(expired(t), &rundir.Entry{Record: &rundir.Record{PID: cmd.Process.Pid}})
		p, opened := d.OpenProcess(0)
		if opened == nil {
			p.Close()
		}
		_, holders := d.Holders()
		free()
		if err == nil {
			t.Errorf("%d descriptors: WaitEnd of a living VM: no error", spare)
		}
		if errors.Is(opened, rundir.ErrNotFound) {
			t.Errorf("%d descriptors: OpenProcess: %v, want EMFILE or the process", spare, opened)
		}
		if spare == 0 && !errors.Is(holders, unix.EMFILE) {
			t.Errorf("%d descriptors: Holders: %v, want EMFILE", spare, holders)
		}
	}
}

// TestInterruptedNames: what an interrupted Create or removal left is never a way to
// other directories.
func TestInterruptedNames(t *testing.T) {
	r := root(t)
	kept := filepath.Join(r.State, "previous", rundir.ConsoleLog)
	outside := filepath.Join(filepath.Dir(r.State), "previous", rundir.ConsoleLog)
	for _, file := range []string{kept, outside} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{".new-", ".new-..", ".old-."} {
		if err := os.MkdirAll(filepath.Join(r.Run, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{kept, outside} {
		if _, err := os.Lstat(file); err != nil {
			t.Errorf("another user's file: %v", err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(r.Run, ".[no]*")); len(left) != 0 {
		t.Errorf("left: %v, want nothing", left)
	}
}

// TestUnreadableVM: a VM that cannot be looked at is named, and does not hide others.
func TestUnreadableVM(t *testing.T) {
	r := root(t)
	start(t, r, "a")
	create(t, r, "b")
	lock := filepath.Join(r.Run, "b", rundir.VMLock)
	if err := errors.Join(os.Remove(lock), os.Symlink("/dev/null", lock)); err != nil {
		t.Fatal(err)
	}
	l, err := r.SweepList(t.Context(), false)
	if err != nil || len(l.Entries) != 1 || l.Entries[0].Name != "a" {
		t.Errorf("entries %v, %v, want a", l.Entries, err)
	}
	if !errors.Is(l.Trouble, unix.ELOOP) || !strings.HasPrefix(l.Trouble.Error(), "b: ") {
		t.Errorf("trouble: %v, want ELOOP of b", l.Trouble)
	}
}
