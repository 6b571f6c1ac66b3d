package rundir_test

import (
	"context"
	"errors"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// recordProcess writes a process down as a VM's.
func recordProcess(t *testing.T, d *rundir.Dir, pid int) {
	t.Helper()
	i, err := rundir.Identify(pid)
	if err != nil {
		t.Fatal(err)
	}
	rec := &rundir.Record{
		Schema: rundir.RecordSchema, Name: d.Name, Technology: "none", State: "running", Settled: true, PID: pid,
		Process: i,
	}
	if err := d.WriteRecord(rec); err != nil {
		t.Fatal(err)
	}
}

func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(cmd) })
	return cmd
}

func entry(t *testing.T, r rundir.Root, name string) *rundir.Entry {
	t.Helper()
	e, err := r.Peek(name)
	if err != nil || e == nil {
		t.Fatalf("%v, %v", e, err)
	}
	return e
}

// TestLetsGoOfItsLock: a QEMU that unlocks what it inherited is still there for every command, and
// is ended by them.
func TestLetsGoOfItsLock(t *testing.T) {
	r := root(t)
	d := create(t, r, "a")
	qemu := sleeper(t) // which has no lock
	recordProcess(t, d, qemu.Process.Pid)
	d.Unlock()
	if e := entry(t, r, "a"); e.Status() != rundir.Alive || !e.LostLock {
		t.Fatalf("%s, %+v, want it alive without its lock", e.Status(), e)
	}
	if _, removed, err := r.Sweep(t.Context()); err != nil || len(removed) > 0 {
		t.Fatalf("%v, %v: it was cleared away", removed, err)
	}
	if _, err := r.Create(t.Context(), "a"); !errors.Is(err, rundir.ErrExists) {
		t.Errorf("%v, want its name taken", err)
	}
	found := find(t, r, "a")
	p, err := found.OpenProcess(0)
	if err != nil || p.PID != qemu.Process.Pid {
		t.Fatalf("%v, %v", p, err)
	}
	p.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := found.WaitEnd(ctx, entry(t, r, "a")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v: its end is reported", err)
	}
	if err := found.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e := entry(t, r, "a"); e.Status() != rundir.Ended {
		t.Errorf("%s after it was killed", e.Status())
	}
}

// TestGivesItsLockAway: a process that was given the lock blocks no name, and is not killed for it.
func TestGivesItsLockAway(t *testing.T) {
	r := root(t)
	d := create(t, r, "a")
	innocent := guest(t, d) // has the lock
	qemu := sleeper(t)
	recordProcess(t, d, qemu.Process.Pid)
	d.Unlock()
	found := find(t, r, "a")
	if err := found.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if qemu.Process.Signal(unix.Signal(0)) == nil && entry(t, r, "a").Status() == rundir.Alive {
		t.Error("QEMU lives")
	}
	if !alive(t, innocent) {
		t.Fatal("a process was killed for holding a lock")
	}
	if e := entry(t, r, "a"); e.Status() != rundir.Ended || !e.Stranger {
		t.Errorf("%s, %+v, want it ended, with a stranger at its lock", e.Status(), e)
	}
	if err := found.WaitEnd(t.Context(), entry(t, r, "a")); err != nil {
		t.Error(err)
	}
	if _, removed, err := r.Sweep(t.Context()); err != nil || len(removed) != 1 {
		t.Errorf("%v, %v, want it cleared away", removed, err)
	}
	again, err := r.Create(t.Context(), "a")
	if err != nil {
		t.Fatalf("its name is blocked: %v", err)
	}
	again.Close()
	if !alive(t, innocent) {
		t.Error("a process was killed for holding a lock")
	}
}

// TestAnotherProcess: a pid that was given anew, or is of another boot, is not the VM's.
func TestAnotherProcess(t *testing.T) {
	i, err := rundir.Identify(sleeper(t).Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(i *rundir.Identity)
		lives  bool
	}{
		"the same":            {func(*rundir.Identity) {}, true},
		"started later":       {func(i *rundir.Identity) { i.Start -= 2 }, false},
		"of another boot":     {func(i *rundir.Identity) { i.Boot = "0" }, false},
		"a pid of no process": {func(i *rundir.Identity) { i.PID = 1 << 30 }, false},
		// Where pids are others', nothing is known by them.
		"of other pids": {func(i *rundir.Identity) { i.PIDs = "pid:[1]" }, false},
	} {
		other := *i
		c.change(&other)
		if lives, known := other.Lives(); lives != c.lives || known != (other.PIDs == i.PIDs) {
			t.Errorf("%s: %t, %t", name, lives, known)
		}
	}
}

// TestWithSlot: a VM that lives has its slot, whatever it did to its lease.
func TestWithSlot(t *testing.T) {
	r := root(t)
	if n := r.WithSlot("sev"); n != 0 {
		t.Errorf("%d before there is a VM", n)
	}
	for name, pool := range map[string]string{"a": "sev", "b": "sev", "c": "tdx", "d": ""} {
		d := create(t, r, name)
		qemu := sleeper(t)
		i, err := rundir.Identify(qemu.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.WriteRecord(&rundir.Record{
			Schema: rundir.RecordSchema, Name: name, State: "running", Settled: true, Process: i, Slot: pool,
		}); err != nil {
			t.Fatal(err)
		}
		if name == "b" {
			end(qemu)
		}
		d.Unlock()
	}
	for pool, want := range map[string]int{"sev": 1, "tdx": 1, "mktme": 0} {
		if n := r.WithSlot(pool); n != want {
			t.Errorf("%s: %d, want %d", pool, n, want)
		}
	}
}
