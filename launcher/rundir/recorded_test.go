package rundir_test

import (
	"os"
	"os/exec"
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
	if e := entry(t, r, "a"); e.Status() != rundir.Alive || len(e.Gone) > 0 {
		t.Errorf("%s, gone %v", e.Status(), e.Gone)
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
	if e := entry(t, r, "a"); e.Status() != rundir.Alive || !slices.Equal(e.Gone, []string{"tpm"}) {
		t.Errorf("%s, gone %v, want its TPM", e.Status(), e.Gone)
	}
}

// TestHelperOfOtherPIDs: what a VM of another namespace of pids has left is cleared away once no
// process holds its locks.
func TestHelperOfOtherPIDs(t *testing.T) {
	r := root(t)
	d := create(t, r, "a")
	innocent := sleeper(t) // has the pid here that the helper had there
	recordHelper(t, d, innocent.Process.Pid, innocent.Process.Pid, func(i *rundir.Identity) { i.PIDs = "pid:[1]" })
	e := entry(t, r, "a").Record
	e.Process.PIDs = "pid:[1]"
	if err := d.WriteRecord(e); err != nil {
		t.Fatal(err)
	}
	d.Unlock()
	if _, removed, err := r.Sweep(t.Context()); err != nil || len(removed) != 1 {
		t.Errorf("%v, %v, want it cleared away", removed, err)
	}
	if !alive(t, innocent) {
		t.Error("a process was killed for its pid")
	}
}

// TestWrappedByRecord: a VM whose QEMU was started by another program lives while that program does,
// or a process has its lock; both are ended.
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
