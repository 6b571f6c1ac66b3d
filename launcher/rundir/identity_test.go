package rundir_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// start makes a VM that is alive, and returns it unlocked.
func start(t *testing.T, r rundir.Root, name string) (*rundir.Dir, *exec.Cmd) {
	t.Helper()
	d := create(t, r, name)
	cmd := guest(t, d)
	settle(t, d, cmd.Process.Pid)
	d.Unlock()
	return d, cmd
}

func find(t *testing.T, r rundir.Root, name string) *rundir.Dir {
	t.Helper()
	d, _, err := r.Find(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

func end(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

func alive(t *testing.T, cmd *exec.Cmd) bool {
	t.Helper()
	return cmd.Process.Signal(unix.Signal(0)) == nil
}

// TestIdentity: a Dir is about one VM. A later VM of the name differs from it, and is
// not killed through it.
func TestIdentity(t *testing.T) {
	r := root(t)
	created, first := start(t, r, "a")
	found := find(t, r, "a")
	opened, _, err := r.Open(t.Context(), "a", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	other, _ := start(t, r, "b")
	for _, c := range []struct {
		what string
		a, b *rundir.Dir
		want bool
	}{
		{"created and found", created, found, true},
		{"created and opened", created, opened, true},
		{"found and opened", found, opened, true},
		{"two names", created, other, false},
	} {
		if c.a.Same(c.b) != c.want || c.b.Same(c.a) != c.want {
			t.Errorf("%s: Same is not %t", c.what, c.want)
		}
	}
	opened.Close()
	end(first)
	if _, _, err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	later, second := start(t, r, "a")
	for what, d := range map[string]*rundir.Dir{"created": created, "found": found} {
		if d.Same(later) || later.Same(d) {
			t.Errorf("%s: a later VM of the name is taken for the same", what)
		}
		if err := errors.Join(d.Kill(t.Context()), d.KillIfHeld(t.Context())); err != nil {
			t.Errorf("%s: kill of a VM that has ended: %v", what, err)
		}
		if err := d.WaitEnd(t.Context(), &rundir.Entry{Record: &rundir.Record{PID: second.Process.Pid}}); err != nil {
			t.Errorf("%s: wait for a VM that has ended: %v", what, err)
		}
		if pids, err := d.Holders(); err != nil || len(pids) != 0 {
			t.Errorf("%s: holders %v, %v, want none", what, pids, err)
		}
	}
	if !alive(t, second) {
		t.Error("the later VM was killed")
	}
}

// TestUnlockKeepsTheIdentity, and Close gives it up, without falling back to
// whatever VM has the name.
func TestUnlockKeepsTheIdentity(t *testing.T) {
	r := root(t)
	d, cmd := start(t, r, "a")
	if status(t, r, "a") != rundir.Alive {
		t.Error("an unlocked VM is still being launched")
	}
	other := find(t, r, "a")
	d.Close()
	d.Close()
	if d.Same(other) || other.Same(d) {
		t.Error("a closed Dir is the same as another")
	}
	_, holders := d.Holders()
	_, process := d.OpenProcess(cmd.Process.Pid)
	for what, err := range map[string]error{
		"Kill":        d.Kill(t.Context()),
		"KillIfHeld":  d.KillIfHeld(t.Context()),
		"Holders":     holders,
		"OpenProcess": process,
		"WaitEnd":     d.WaitEnd(t.Context(), &rundir.Entry{}),
	} {
		if !errors.Is(err, fs.ErrClosed) {
			t.Errorf("%s of a closed Dir: %v, want ErrClosed", what, err)
		}
	}
	if !alive(t, cmd) {
		t.Error("the VM was killed through a closed Dir")
	}
}

// TestCloseWhileAnotherWaits: the wait is for the VM's end, and not cut short.
func TestCloseWhileAnotherWaits(t *testing.T) {
	r := root(t)
	d, cmd := start(t, r, "a")
	ended := make(chan error, 1)
	go func() { ended <- d.WaitEnd(t.Context(), &rundir.Entry{Record: &rundir.Record{PID: cmd.Process.Pid}}) }()
	time.Sleep(20 * time.Millisecond)
	d.Close()
	select {
	case err := <-ended:
		t.Fatalf("the wait ended before the VM: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	end(cmd)
	<-ended
}

func TestWaitEnd(t *testing.T) {
	r := root(t)
	d, cmd := start(t, r, "a")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := d.WaitEnd(ctx, &rundir.Entry{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a living VM: %v, want DeadlineExceeded", err)
	}
	gone := make(chan struct{})
	time.AfterFunc(20*time.Millisecond, func() { end(cmd); close(gone) })
	if err := d.WaitEnd(t.Context(), &rundir.Entry{Record: &rundir.Record{PID: 1}}); err != nil {
		t.Errorf("with a wrong hint: %v", err)
	}
	<-gone
	if s := status(t, r, "a"); s != rundir.Ended {
		t.Errorf("status %s, want ended", s)
	}
}

// TestOpenProcess: the hint is believed only of a process that holds the lock.
func TestOpenProcess(t *testing.T) {
	r := root(t)
	d, cmd := start(t, r, "a")
	for _, hint := range []int{cmd.Process.Pid, 0, 1, os.Getpid(), 1 << 30} {
		p, err := d.OpenProcess(hint)
		if err != nil {
			t.Fatalf("hint %d: %v", hint, err)
		}
		if p.PID != cmd.Process.Pid {
			t.Errorf("hint %d: process %d, want %d", hint, p.PID, cmd.Process.Pid)
		}
		p.Close()
	}
	p, err := d.OpenProcess(0)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := d.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.Wait(t.Context()), cmd.Wait()); err == nil {
		t.Error("the process ended well, want killed")
	}
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Errorf("a signal to a process that has ended: %v", err)
	}
	if _, err := d.OpenProcess(cmd.Process.Pid); !errors.Is(err, rundir.ErrNotFound) {
		t.Errorf("after the end: %v, want ErrNotFound", err)
	}
}

// TestKillIfHeld: what the VM's main process has left running is ended.
func TestKillIfHeld(t *testing.T) {
	r := root(t)
	d := create(t, r, "a")
	defer d.Close()
	helper := exec.Command("sleep", "1000")
	helper.ExtraFiles = []*os.File{d.VMLockFile()}
	if err := helper.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = helper.Wait() }()
	cmd := guest(t, d)
	settle(t, d, cmd.Process.Pid)
	d.Unlock()
	end(cmd)
	if err := d.KillIfHeld(t.Context()); err != nil {
		t.Fatal(err)
	}
	if pids, err := d.Holders(); err != nil || len(pids) != 0 {
		t.Errorf("holders %v, %v, want none", pids, err)
	}
	if err := d.KillIfHeld(t.Context()); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

// TestKillByTheCreator: while the creator still has the lock, it is not waited for.
func TestKillByTheCreator(t *testing.T) {
	r := root(t)
	d := create(t, r, "a")
	defer d.Close()
	cmd := exec.Command("sleep", "1000")
	cmd.ExtraFiles = []*os.File{d.VMLockFile()}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := d.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	if pids, err := d.Holders(); err != nil || len(pids) != 0 {
		t.Errorf("holders %v, %v, want none", pids, err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the process ended well, want killed")
	}
}

// TestOwnersCommand: what it started is found by its lock, and ended with the VM.
func TestOwnersCommand(t *testing.T) {
	r := root(t)
	d := create(t, r, "a")
	if err := d.KillOwner(t.Context()); err != nil {
		t.Errorf("without an owner's command: %v", err)
	}
	launchOwner := func() *exec.Cmd {
		lock, err := d.LockOwner()
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
		if _, err := d.LockOwner(); !errors.Is(err, unix.EWOULDBLOCK) {
			t.Errorf("a second owner's command: %v, want EWOULDBLOCK", err)
		}
		cmd := exec.Command("sleep", "1000")
		cmd.ExtraFiles = []*os.File{lock}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	owner := launchOwner()
	if err := d.KillOwner(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := owner.Wait(); err == nil {
		t.Error("the command ended well, want killed")
	}
	owner = launchOwner()
	d.Close() // the launcher dies
	if _, _, err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := owner.Wait(); err == nil {
		t.Error("after a sweep the command ended well, want killed")
	}
}

func TestAwaitLaunch(t *testing.T) {
	r := root(t)
	d := create(t, r, "a")
	defer d.Close()
	settle(t, d, 0)
	found := find(t, r, "a")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := found.AwaitLaunch(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while it is launched: %v, want DeadlineExceeded", err)
	}
	time.AfterFunc(20*time.Millisecond, d.Close)
	if err := found.AwaitLaunch(t.Context()); err != nil {
		t.Error(err)
	}
	if _, _, err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := found.AwaitLaunch(t.Context()); err != nil {
		t.Errorf("of a VM that is gone: %v", err)
	}
}

// TestLogsAreNotAVM: a Dir about the logs of a VM that has ended is the same as none.
func TestLogsAreNotAVM(t *testing.T) {
	r := root(t)
	_, cmd := start(t, r, "a")
	end(cmd)
	if _, _, err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	logs, _, err := r.FindLogs(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	other, _ := start(t, r, "b")
	if logs.Same(other) || other.Same(logs) || logs.Same(logs) {
		t.Error("logs are the same as a VM")
	}
	if err := errors.Join(logs.Kill(t.Context()), logs.KillIfHeld(t.Context())); err != nil {
		t.Errorf("kill: %v", err)
	}
	if _, err := logs.OpenProcess(0); !errors.Is(err, rundir.ErrNotFound) {
		t.Errorf("OpenProcess: %v, want ErrNotFound", err)
	}
}
