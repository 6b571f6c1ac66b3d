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
