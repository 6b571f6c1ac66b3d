package rundir_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// session starts a shell in a session of its own, which has the lock of a VM's helpers.
func session(t *testing.T, lock *os.File, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	cmd.ExtraFiles = []*os.File{lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(cmd) })
	return cmd
}

// recordHelper writes a VM down with its process, and its helper's.
func recordHelper(t *testing.T, d *rundir.Dir, qemu, helper int, change func(*rundir.Identity)) {
	t.Helper()
	i, err := rundir.Identify(qemu)
	if err != nil {
		t.Fatal(err)
	}
	h, err := rundir.Identify(helper)
	if err != nil {
		t.Fatal(err)
	}
	change(h)
	if err := d.WriteRecord(&rundir.Record{
		Schema: rundir.RecordSchema, Name: d.Name, State: "running", Settled: true, PID: qemu,
		Process: i, Helpers: map[string]*rundir.Identity{"tpm": h},
	}); err != nil {
		t.Fatal(err)
	}
}

// TestHelperByRecord: a helper is ended by what was written down, whatever it did to its lock, with
// what it has started; a process that it gave the lock to is not.
func TestHelperByRecord(t *testing.T) {
	r := root(t)
	d := create(t, r, "a")
	lock, err := d.LockHelpers()
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	qemu := sleeper(t)
	helper := session(t, lock, "sleep 600 & echo $! >&3; sleep 600") // the echo fails: 3 is for reading
	innocent := session(t, lock, "sleep 600")
	recordHelper(t, d, qemu.Process.Pid, helper.Process.Pid, func(*rundir.Identity) {})
	d.Unlock()
	if err := os.Chmod(lock.Name(), 0); err != nil { // as the helper could
		t.Fatal(err)
	}
	if e := entry(t, r, "a"); e.Status() != rundir.Alive || len(e.Gone()) > 0 {
		t.Errorf("%s, gone %v", e.Status(), e.Gone())
	}
	found := find(t, r, "a")
	began := time.Now()
	if err := found.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("that took %v", took)
	}
	killed(t, "Kill", helper)
	left, _ := exec.Command("ps", "-o", "stat=,pid=", "--sid", strconv.Itoa(helper.Process.Pid)).Output()
	for line := range strings.Lines(string(left)) {
		if !strings.HasPrefix(line, "Z") { // not every machine reaps them at once
			t.Errorf("what the helper has started is left: %s", line)
		}
	}
	if !alive(t, innocent) {
		t.Error("a process was killed for holding a lock")
	}
	if _, removed, err := r.Sweep(t.Context()); err != nil || len(removed) != 1 {
		t.Errorf("%v, %v, want it cleared away", removed, err)
	}
}

// TestHelperThatHasGone: a VM that lives shows which of its helpers do not.
func TestHelperThatHasGone(t *testing.T) {
	r := root(t)
	d := create(t, r, "a")
	lock, err := d.LockHelpers()
	if err != nil {
		t.Fatal(err)
	}
	helper := session(t, lock, "sleep 600")
	_ = lock.Close()
	recordHelper(t, d, sleeper(t).Process.Pid, helper.Process.Pid, func(*rundir.Identity) {})
	d.Unlock()
	end(helper)
	if e := entry(t, r, "a"); e.Status() != rundir.Alive || !slices.Equal(e.Gone(), []string{"tpm"}) {
		t.Errorf("%s, gone %v, want its TPM", e.Status(), e.Gone())
	}
}

// TestHelperOfOtherPIDs: what a VM of another namespace of pids has left is known by its lock
// alone: it is ended if it holds that, and else its directory is cleared away.
func TestHelperOfOtherPIDs(t *testing.T) {
	for name, pid := range map[string]int{"a pid of another process": os.Getpid(), "a pid of none": 1 << 21} {
		for _, holds := range []bool{true, false} {
			r := root(t)
			d := create(t, r, "a")
			helper := sleeper(t)
			if holds {
				lock, err := d.LockHelpers()
				if err != nil {
					t.Fatal(err)
				}
				helper = session(t, lock, "exec sleep 600")
				_ = lock.Close()
			}
			recordHelper(t, d, os.Getpid(), os.Getpid(), func(i *rundir.Identity) { i.PIDs, i.PID = "pid:[1]", pid })
			rec := entry(t, r, "a").Record
			rec.Process.PIDs = "pid:[1]"
			if err := d.WriteRecord(rec); err != nil {
				t.Fatal(err)
			}
			d.Unlock()
			if _, removed, err := r.Sweep(t.Context()); err != nil || len(removed) != 1 {
				t.Errorf("%s, holds %t: %v, %v, want it cleared away", name, holds, removed, err)
			}
			if holds {
				killed(t, name, helper)
			} else if !alive(t, helper) {
				t.Errorf("%s: a process was killed for its pid", name)
			}
		}
	}
}

// TestHelperOfAnEndedVM: whatever takes a VM's name, or forgets the VM, ends its helpers first.
func TestHelperOfAnEndedVM(t *testing.T) {
	for name, do := range map[string]func(r rundir.Root) error{
		"create": func(r rundir.Root) error {
			d, err := r.Create(t.Context(), "a")
			if err == nil {
				d.Close()
			}
			return err
		},
		"forget": func(r rundir.Root) error { return r.Forget(t.Context(), "a") },
		"sweep":  func(r rundir.Root) error { _, _, err := r.Sweep(t.Context()); return err },
	} {
		r := root(t)
		d := create(t, r, "a")
		helper, qemu := sleeper(t), sleeper(t) // the helper has let go of its lock
		recordHelper(t, d, qemu.Process.Pid, helper.Process.Pid, func(*rundir.Identity) {})
		end(qemu)
		d.Unlock()
		if err := do(r); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		killed(t, name, helper)
	}
}

// TestLinksOfAHostileVM: what a QEMU makes where its peers reach it blocks no name, and goes.
func TestLinksOfAHostileVM(t *testing.T) {
	r := root(t)
	for range 2 {
		d := create(t, r, "a")
		if err := r.MakePeerDirs("a", "b"); err != nil {
			t.Fatal(err)
		}
		inside := filepath.Join(r.PeerSocket("a", "b"), "x")
		if err := os.MkdirAll(inside, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Dir(inside), 0); err != nil {
			t.Fatal(err)
		}
		d.Unlock()
		if _, _, err := r.Sweep(t.Context()); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(r.PeerDir("a", "b")); err != nil || len(left) > 0 {
			t.Errorf("left %v, %v", left, err)
		}
	}
}

// TestWrappedByRecord: a VM whose QEMU was started by another program lives while that program
// does, or a process has its lock; both are ended.
func TestWrappedByRecord(t *testing.T) {
	r := root(t)
	d := create(t, r, "a")
	qemu := guest(t, d) // has the lock
	script := sleeper(t)
	i, err := rundir.Identify(script.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.WriteRecord(&rundir.Record{
		Schema: rundir.RecordSchema, Name: "a", State: "running", Settled: true, PID: script.Process.Pid,
		Process: i, Wrapped: true,
	}); err != nil {
		t.Fatal(err)
	}
	d.Unlock()
	end(script)
	if e := entry(t, r, "a"); e.Status() != rundir.Alive || e.Stranger {
		t.Errorf("%s, %+v, want it alive by its lock", e.Status(), e)
	}
	if err := find(t, r, "a").Kill(t.Context()); err != nil {
		t.Error(err)
	}
	killed(t, "Kill", qemu)
	if e := entry(t, r, "a"); e.Status() != rundir.Ended {
		t.Errorf("%s after it was killed", e.Status())
	}
}
