package rundir_test

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/integration/leak"
	"github.com/vmlatch/vmlatch/launcher/internal/testdir"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

func TestMain(m *testing.M) { leak.VerifyTestMain(m) }

func root(t *testing.T) rundir.Root {
	t.Helper()
	dir := testdir.InMemory(t)
	return rundir.Root{Run: filepath.Join(dir, "run"), State: filepath.Join(dir, "state")}
}

// guest is a process that inherits a VM's lock, as QEMU does.
func guest(t *testing.T, d *rundir.Dir) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	cmd.ExtraFiles = []*os.File{d.VMLockFile()}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	d.DropVMLock()
	return cmd
}

func settle(t *testing.T, d *rundir.Dir, pid int) {
	t.Helper()
	err := d.WriteRecord(&rundir.Record{
		Schema: rundir.RecordSchema, Name: d.Name, State: "running", Settled: true,
		PID: pid,
	})
	if err != nil {
		t.Fatal(err)
	}
}

func status(t *testing.T, r rundir.Root, name string) rundir.Status {
	t.Helper()
	d, e, err := r.Find(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	return e.Status()
}

func TestLifeOfAVM(t *testing.T) {
	r := root(t)
	d := create(t, r, "a")
	if s := status(t, r, "a"); s != rundir.Launching {
		t.Errorf("after Create: %s", s)
	}
	if _, err := r.Create(t.Context(), "a"); !errors.Is(err, rundir.ErrExists) {
		t.Errorf("a second Create: %v", err)
	}
	cmd := guest(t, d)
	settle(t, d, cmd.Process.Pid)
	if err := os.WriteFile(d.LogPath(rundir.ConsoleLog), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Close()
	if s := status(t, r, "a"); s != rundir.Alive {
		t.Errorf("after the launch: %s", s)
	}
	killed, removed, err := r.Sweep(context.Background())
	if err != nil || len(killed)+len(removed) > 0 {
		t.Errorf("a sweep touches a living VM: %v %v %v", killed, removed, err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if s := status(t, r, "a"); s != rundir.Ended {
		t.Errorf("after its death: %s", s)
	}
	if _, removed, err = r.Sweep(context.Background()); err != nil || len(removed) != 1 {
		t.Errorf("sweep: %v, %v", removed, err)
	}
	if _, _, err := r.Find(t.Context(), "a"); !errors.Is(err, rundir.ErrNotFound) {
		t.Errorf("after the sweep: %v", err)
	}
	_, e, err := r.FindLogs(t.Context(), "a")
	if err != nil || e.Record.State != "running" {
		t.Errorf("its record is not kept: %+v, %v", e, err)
	}
	again, err := r.Create(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if b, _ := readLog(again, true); string(b) != "hello" {
		t.Errorf("the previous log is %q", b)
	}
}

func readLog(d *rundir.Dir, previous bool) ([]byte, error) {
	f, err := d.OpenLog(rundir.ConsoleLog, previous)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

func TestAbandonedLaunchIsEnded(t *testing.T) {
	r := root(t)
	d := create(t, r, "a")
	cmd := guest(t, d)
	if err := os.WriteFile(d.LogPath(rundir.QEMULog), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d.Close() // the launcher dies before it has settled anything
	if s := status(t, r, "a"); s != rundir.Abandoned {
		t.Fatalf("status %s", s)
	}
	dead := make(chan error, 1)
	go func() { dead <- cmd.Wait() }()
	killed, _, err := r.Sweep(context.Background())
	if err != nil || len(killed) != 1 {
		t.Fatalf("sweep: %v, %v", killed, err)
	}
	select {
	case <-dead:
	case <-time.After(10 * time.Second):
		t.Fatal("its process lives")
	}
	for _, dir := range []string{d.Run, d.State} {
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", dir, err)
		}
	}
}

// TestUnreapedProcessCountsAsDead: the process that should reap a VM may never do so.
func TestUnreapedProcessCountsAsDead(t *testing.T) {
	r := root(t)
	d := create(t, r, "a")
	cmd := guest(t, d)
	settle(t, d, cmd.Process.Pid)
	defer d.Close()
	d.Unlock()
	p, err := d.OpenProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	_ = cmd.Process.Kill() // and no Wait: it stays a zombie
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := p.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if s := status(t, r, "a"); s != rundir.Ended {
		t.Errorf("status %s", s)
	}
}

// TestOnlyHoldersAreKilled: a record can name a process that is not the VM's.
func TestOnlyHoldersAreKilled(t *testing.T) {
	r := root(t)
	d := create(t, r, "a")
	innocent := exec.Command("sleep", "1000")
	if err := innocent.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = innocent.Process.Kill(); _ = innocent.Wait() }()
	settle(t, d, innocent.Process.Pid)
	d.DropVMLock()
	if _, err := d.OpenProcess(innocent.Process.Pid); !errors.Is(err, rundir.ErrNotFound) {
		t.Errorf("a foreign process is taken for the VM: %v", err)
	}
	if err := d.Kill(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := innocent.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("the foreign process: %v", err)
	}
	d.Close()
}

func TestOpenWaitsForTheLock(t *testing.T) {
	r := root(t)
	d := create(t, r, "a")
	cmd := guest(t, d)
	settle(t, d, cmd.Process.Pid)
	if _, _, err := r.Open(t.Context(), "a", 0); !errors.Is(err, rundir.ErrBusy) {
		t.Errorf("while another command works: %v", err)
	}
	time.AfterFunc(50*time.Millisecond, d.Close)
	again, rec, err := r.Open(t.Context(), "a", 10*time.Second)
	if err != nil || rec.State != "running" {
		t.Fatalf("%v, %v", rec, err)
	}
	again.Close()
}

func TestHostileRunDirectories(t *testing.T) {
	r := root(t)
	if err := os.MkdirAll(r.Run, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(r.Run, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Create(t.Context(), "a"); err == nil || !strings.Contains(err.Error(), "no other user can write") {
		t.Errorf("a world-writable run directory: %v", err)
	}
	_ = os.Chmod(r.Run, 0o700)
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.Mkdir(victim, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, filepath.Join(r.Run, "a")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Create(t.Context(), "a"); err == nil {
		t.Error("a symlink in place of a VM's directory is followed")
	}
	if entries, _ := os.ReadDir(victim); len(entries) > 0 {
		t.Errorf("written through the symlink: %v", entries)
	}
	long := rundir.Root{Run: "/tmp/" + strings.Repeat("x", 100), State: r.State}
	if _, err := long.Create(t.Context(), "a"); err == nil || !strings.Contains(err.Error(), "at most 107") {
		t.Errorf("a long path: %v", err)
	}
	for _, bad := range []string{"", ".", "..", "a/b", "-x", ".x", strings.Repeat("a", 64), "a b", "a\n"} {
		if _, err := r.Create(t.Context(), bad); err == nil {
			t.Errorf("the name %q is accepted", bad)
		}
	}
}

func TestDamagedRecordIsNoRecord(t *testing.T) {
	r := root(t)
	d := create(t, r, "a")
	defer d.Close()
	if err := os.WriteFile(d.Path("record.json"), []byte(`{"schema": "vmlatch`), 0o600); err != nil {
		t.Fatal(err)
	}
	found, e, err := r.Find(t.Context(), "a")
	if err != nil || e.Record != nil {
		t.Fatalf("%+v, %v, want no record", e, err)
	}
	found.Close()
}

func TestListIsSortedAndShowsEnded(t *testing.T) {
	r := root(t)
	for _, name := range []string{"b", "a"} {
		d, err := r.Create(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		settle(t, d, 0)
		d.Close()
	}
	entries, err := r.List(t.Context(), false)
	if err != nil || len(entries) != 2 || entries[0].Name != "a" {
		t.Fatalf("%v, %v", entries, err)
	}
	if _, _, err := r.Sweep(context.Background()); err != nil {
		t.Fatal(err)
	}
	if entries, err = r.List(t.Context(), false); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v", entries, err)
	}
	if entries, err = r.List(t.Context(), true); err != nil || len(entries) != 2 {
		t.Errorf("%v, %v", entries, err)
	}
}

// TestProbersAreNotHolders: commands that look at a VM must not be taken for it.
func TestProbersAreNotHolders(t *testing.T) {
	r := root(t)
	d := create(t, r, "a")
	cmd := guest(t, d)
	settle(t, d, cmd.Process.Pid)
	defer d.Close()
	d.Unlock()
	prober := exec.Command("sh", "-c", "exec 3<>\"$1\"; flock -s -n 3; exec sleep 1000", "sh", d.Path(rundir.VMLock))
	if err := prober.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = prober.Process.Kill(); _ = prober.Wait() }()
	time.Sleep(50 * time.Millisecond)
	pids, err := d.Holders()
	if err != nil || len(pids) != 1 || pids[0] != cmd.Process.Pid {
		t.Errorf("holders %v, %v; want %d", pids, err, cmd.Process.Pid)
	}
	if err := d.Kill(context.Background()); err != nil {
		t.Error(err)
	}
	if err := prober.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("the prober: %v", err)
	}
}

// TestFailedStartGivesTheLogsBack: a start that comes to nothing must not cost
// the logs of the run before.
func TestFailedStartGivesTheLogsBack(t *testing.T) {
	r := root(t)
	d := create(t, r, "a")
	settle(t, d, 0)
	if err := os.WriteFile(d.LogPath(rundir.ConsoleLog), []byte("good run"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Close()
	for name, fail := range map[string]func(*rundir.Dir){
		"discarded": func(d *rundir.Dir) { _ = d.Discard() },
		"abandoned": func(d *rundir.Dir) { d.Close(); _, _, _ = r.Sweep(context.Background()) },
	} {
		failed, err := r.Create(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(failed.LogPath(rundir.ConsoleLog), []byte("bad run"), 0o600); err != nil {
			t.Fatal(err)
		}
		fail(failed)
		again, e, err := r.FindLogs(t.Context(), "a")
		if err != nil || e.Record == nil {
			t.Fatalf("%s: %v", name, err)
		}
		again.Close()
		if b, _ := os.ReadFile(again.LogPath(rundir.ConsoleLog)); string(b) != "good run" {
			t.Errorf("%s: the log is %q", name, b)
		}
	}
}
