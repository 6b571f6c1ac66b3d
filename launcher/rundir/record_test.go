package rundir_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/rundir"
)

func create(t *testing.T, r rundir.Root, name string) *rundir.Dir {
	t.Helper()
	d, err := r.Create(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// state is the state of a VM's record; "" without a record.
func state(t *testing.T, r rundir.Root, name string) string {
	t.Helper()
	d, e, err := r.Find(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if e.Record == nil {
		return ""
	}
	return e.Record.State
}

// TestStagedRecord: a record counts when it is committed, and not before.
func TestStagedRecord(t *testing.T) {
	r := root(t)
	d := create(t, r, "a")
	settle(t, d, 0)
	if rec, err := d.StagedRecord(); rec != nil || err != nil {
		t.Errorf("nothing is staged: %+v, %v, want nil", rec, err)
	}
	next := &rundir.Record{Schema: rundir.RecordSchema, Name: "a", State: "next <&>", Settled: true}
	if err := d.StageRecord(next); err != nil {
		t.Fatal(err)
	}
	if s := state(t, r, "a"); s != "running" {
		t.Errorf("staged: the record's state is %q, want running", s)
	}
	if rec, err := d.StagedRecord(); err != nil || rec == nil || rec.State != "next <&>" {
		t.Errorf("staged: %+v, %v, want state next", rec, err)
	}
	d.UnstageRecord()
	if rec, err := d.StagedRecord(); rec != nil || err != nil {
		t.Errorf("unstaged: %+v, %v, want nil", rec, err)
	}
	if err := d.CommitRecord(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a commit of nothing: %v, want ErrNotExist", err)
	}
	if err := errors.Join(d.StageRecord(next), d.CommitRecord()); err != nil {
		t.Fatal(err)
	}
	if s := state(t, r, "a"); s != "next <&>" {
		t.Errorf("committed: the record's state is %q, want next", s)
	}
	b, err := os.ReadFile(d.Path("record.json"))
	if err != nil || !bytes.Contains(b, []byte("next <&>")) {
		t.Errorf("%s, %v, want the state as it is", b, err)
	}
	if rec, err := d.StagedRecord(); rec != nil || err != nil {
		t.Errorf("committed: staged is %+v, %v, want nil", rec, err)
	}
}

// TestRecordThatCannotBeWritten leaves the one before in place.
func TestRecordThatCannotBeWritten(t *testing.T) {
	r := root(t)
	d := create(t, r, "a")
	settle(t, d, 0)
	huge := &rundir.Record{Name: "a", State: "huge", Argv: []string{strings.Repeat("x", 1<<20)}}
	if err := d.WriteRecord(huge); err == nil || !strings.Contains(err.Error(), "at most 1048576") {
		t.Errorf("a huge record: %v, want the limit", err)
	}
	if rec, err := d.StagedRecord(); rec != nil || err != nil {
		t.Errorf("a huge record: staged is %+v, %v, want nil", rec, err)
	}
	if err := os.Mkdir(d.Path(".record.json.new"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.Path(".record.json.new"), "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteRecord(&rundir.Record{Name: "a", State: "next"}); err == nil {
		t.Error("a record was staged over a directory")
	}
	if s := state(t, r, "a"); s != "running" {
		t.Errorf("the record's state is %q, want running", s)
	}
}

// TestStagingFollowsNoLink: what lies where a record is staged is replaced.
func TestStagingFollowsNoLink(t *testing.T) {
	d := create(t, root(t), "a")
	victim := filepath.Join(t.TempDir(), "victim")
	if err := errors.Join(os.WriteFile(victim, []byte("mine"), 0o600),
		os.Symlink(victim, d.Path(".record.json.new"))); err != nil {
		t.Fatal(err)
	}
	settle(t, d, 0)
	if b, err := os.ReadFile(victim); err != nil || string(b) != "mine" {
		t.Errorf("behind the link: %q, %v, want mine", b, err)
	}
	if info, err := os.Lstat(d.Path("record.json")); err != nil || !info.Mode().IsRegular() ||
		info.Mode().Perm() != 0o600 {
		t.Errorf("the record: %v, %v, want a regular file with 0600", info, err)
	}
}

// TestOddRecords: what is not a record that vmlatch wrote whole does not count, and is
// not waited for.
func TestOddRecords(t *testing.T) {
	for what, put := range map[string]func(name string) error{
		"link":      func(name string) error { return os.Symlink("/etc/passwd", name) },
		"pipe":      func(name string) error { return unix.Mkfifo(name, 0o600) },
		"directory": func(name string) error { return os.Mkdir(name, 0o700) },
		"garbage":   func(name string) error { return os.WriteFile(name, []byte("{"), 0o600) },
		"too large": func(name string) error { return os.WriteFile(name, make([]byte, 1<<20+1), 0o600) },
	} {
		r := root(t)
		d := create(t, r, "a")
		if err := put(d.Path("record.json")); err != nil {
			t.Fatal(err)
		}
		if s := state(t, r, "a"); s != "" {
			t.Errorf("%s: a record of state %q, want none", what, s)
		}
	}
}

// TestForget removes what is left of a VM that has ended, and of no other.
func TestForget(t *testing.T) {
	r := root(t)
	if err := r.Forget(t.Context(), "a"); !errors.Is(err, rundir.ErrNotFound) {
		t.Errorf("without a run directory: %v, want ErrNotFound", err)
	}
	d, cmd := start(t, r, "a")
	if err := r.Forget(t.Context(), "b"); !errors.Is(err, rundir.ErrNotFound) {
		t.Errorf("of another name: %v, want ErrNotFound", err)
	}
	if err := r.Forget(t.Context(), "a"); !errors.Is(err, rundir.ErrExists) || !alive(t, cmd) {
		t.Errorf("of a living VM: %v, want ErrExists", err)
	}
	if err := os.WriteFile(d.LogPath(rundir.ConsoleLog), []byte("log"), 0o600); err != nil {
		t.Fatal(err)
	}
	end(cmd)
	if err := r.Forget(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{d.Run, d.State} {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, want that it is gone", dir, err)
		}
	}
	if err := r.Forget(t.Context(), "a"); !errors.Is(err, rundir.ErrNotFound) {
		t.Errorf("a second time: %v, want ErrNotFound", err)
	}
}

// TestForgetALaunch: a VM that is being launched is not one that has ended.
func TestForgetALaunch(t *testing.T) {
	r := root(t)
	d := create(t, r, "a")
	d.DropVMLock()
	if err := r.Forget(t.Context(), "a"); !errors.Is(err, rundir.ErrExists) {
		t.Errorf("%v, want ErrExists", err)
	}
	if _, err := os.Lstat(d.Run); err != nil {
		t.Errorf("its directory: %v", err)
	}
}

// TestForgetAllRuns: the logs of the run before go too; a file that vmlatch did not
// make stays, and so does its directory.
func TestForgetAllRuns(t *testing.T) {
	r := root(t)
	var d *rundir.Dir
	for range 2 {
		var cmd *exec.Cmd
		d, cmd = start(t, r, "a")
		if err := os.WriteFile(d.LogPath(rundir.ConsoleLog), []byte("log"), 0o600); err != nil {
			t.Fatal(err)
		}
		end(cmd)
		if _, _, err := r.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := readLog(d, true); err != nil || string(b) != "log" {
		t.Errorf("the log of the run before: %q, %v, want log", b, err)
	}
	notes := d.LogPath("notes.txt")
	if err := os.WriteFile(notes, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.Forget(t.Context(), "a"); err == nil {
		t.Error("a directory with a foreign file was removed")
	}
	if err := os.Remove(notes); err != nil {
		t.Errorf("the foreign file: %v", err)
	}
	if err := r.Forget(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(d.State); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its logs: %v, want that they are gone", err)
	}
}

// TestForgetHostileDirectories: a link, or a directory that others can write to, is
// not emptied.
func TestForgetHostileDirectories(t *testing.T) {
	r := root(t)
	d, cmd := start(t, r, "a")
	end(cmd)
	if _, _, err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(d.State, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := r.Forget(t.Context(), "a"); !errors.Is(err, rundir.ErrUnsafe) {
		t.Errorf("a directory that others can write to: %v, want ErrUnsafe", err)
	}
	if err := os.Chmod(r.Run, 0o777); err != nil {
		t.Fatal(err)
	}
	_, _, found := r.Find(t.Context(), "a")
	_, listed := r.List(t.Context(), true)
	_, _, opened := r.Open(t.Context(), "a", 0)
	for what, err := range map[string]error{
		"Forget": r.Forget(t.Context(), "a"), "Find": found, "List": listed,
		"Open": opened,
	} {
		if !errors.Is(err, rundir.ErrUnsafe) {
			t.Errorf("%s in an unsafe run directory: %v, want ErrUnsafe", what, err)
		}
	}
}

// TestUnsafeStateDirectories: QEMU would write where a link points.
func TestUnsafeStateDirectories(t *testing.T) {
	r := root(t)
	if err := errors.Join(os.MkdirAll(r.State, 0o700),
		os.Symlink(t.TempDir(), filepath.Join(r.State, "a"))); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Create(t.Context(), "a"); !errors.Is(err, rundir.ErrUnsafe) {
		t.Errorf("a link: %v, want ErrUnsafe", err)
	}
	if err := os.Chmod(r.State, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Create(t.Context(), "b"); !errors.Is(err, rundir.ErrUnsafe) {
		t.Errorf("a state directory that all can write to: %v, want ErrUnsafe", err)
	}
	left, err := os.ReadDir(r.Run)
	if err != nil || len(left) != 1 || left[0].Name() != ".lock" {
		t.Errorf("in the run directory: %v, %v, want the lock alone", left, err)
	}
}

// TestLogsThatCannotBeKept: a run does not begin where the logs of the one before would
// be lost, or written through a link.
func TestLogsThatCannotBeKept(t *testing.T) {
	r := root(t)
	d := create(t, r, "a")
	settle(t, d, 0)
	if err := os.WriteFile(d.LogPath(rundir.ConsoleLog), []byte("log"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Close()
	elsewhere := t.TempDir()
	if err := os.Symlink(elsewhere, d.LogPath("previous")); err != nil {
		t.Fatal(err)
	}
	again, err := r.Create(t.Context(), "a")
	if err == nil {
		again.Close()
	}
	if !errors.Is(err, rundir.ErrUnsafe) {
		t.Errorf("%v, want ErrUnsafe", err)
	}
	if b, err := os.ReadFile(d.LogPath(rundir.ConsoleLog)); err != nil || string(b) != "log" {
		t.Errorf("the log: %q, %v, want log", b, err)
	}
	if left, err := os.ReadDir(elsewhere); err != nil || len(left) != 0 {
		t.Errorf("behind the link: %v, %v, want nothing", left, err)
	}
}

// TestOpenLog: a log is a regular file, and one that was not written to does not exist.
func TestOpenLog(t *testing.T) {
	d := create(t, root(t), "a")
	if _, err := d.OpenLog(rundir.ConsoleLog, false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no log: %v, want ErrNotExist", err)
	}
	if err := os.Symlink("/etc/passwd", d.LogPath(rundir.ConsoleLog)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.OpenLog(rundir.ConsoleLog, false); err == nil || !strings.Contains(err.Error(), "log of a") {
		t.Errorf("a link: %v, want an error about the log of a", err)
	}
}

// TestSweepTrouble: one VM that cannot be cleared away stays in the list, and does
// not keep the others from it.
func TestSweepTrouble(t *testing.T) {
	r := root(t)
	for _, name := range []string{"bad", "good", "new"} {
		d := create(t, r, name)
		if name == "bad" {
			if err := os.WriteFile(d.Path("foreign"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if name != "new" {
			settle(t, d, 0)
			d.Close()
		}
	}
	l, err := r.SweepList(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	if l.Trouble == nil || !strings.Contains(l.Trouble.Error(), "bad") {
		t.Errorf("trouble %v, want about bad", l.Trouble)
	}
	var names []string
	for _, e := range l.Entries {
		names = append(names, e.Name+" "+string(e.Status()))
	}
	if want := "bad ended, new launching, good ended"; strings.Join(names, ", ") != want {
		t.Errorf("entries %q, want %s", names, want)
	}
	if len(l.Killed) != 0 || len(l.Removed) != 1 || l.Removed[0] != "good" {
		t.Errorf("killed %v, removed %v, want good removed", l.Killed, l.Removed)
	}
	if e, err := r.List(t.Context(), true); err != nil || len(e) < 2 {
		t.Errorf("list: %v, %v", e, err)
	}
}
