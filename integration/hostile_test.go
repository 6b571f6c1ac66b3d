package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// victim is a directory whose files have the names that vmlatch uses.
func (h *host) victim() (dir string, unchanged func() error) {
	h.t.Helper()
	dir = filepath.Join(h.work, "victim")
	names := []string{
		"vm.lock", "launch.lock", "record.json", ".record.json.new", "console.log", "events.log", "qemu.log",
		"qmp.sock", ".lock", "thesis.tex",
	}
	if err := os.RemoveAll(dir); err != nil {
		h.t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		h.t.Fatal(err)
	}
	for _, n := range names {
		if err := os.WriteFile(filepath.Join(dir, n), []byte("years of work"), 0o644); err != nil {
			h.t.Fatal(err)
		}
	}
	return dir, func() error {
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != len(names) {
			return fmt.Errorf("it has %d entries, had %d: %v", len(entries), len(names), err)
		}
		for _, n := range names {
			if b, err := os.ReadFile(filepath.Join(dir, n)); err != nil || string(b) != "years of work" {
				return fmt.Errorf("%s is %q: %v", n, b, err)
			}
		}
		return nil
	}
}

// TestHostileFiles: links, pipes and huge files where vmlatch expects its files neither
// lead a command elsewhere nor block it.
func TestHostileFiles(t *testing.T) {
	t.Parallel()
	type at struct{ file, target string } // in the work directory, and in the victim
	for name, plant := range map[string][]at{
		"directory":     {{"run/vm", "."}},
		"global lock":   {{"run/.lock", ".lock"}},
		"new directory": {{"run/.new-vm", "."}},
		"old directory": {{"run/.old-vm", "."}},
		"slots":         {{"run/.slots", "."}},
		"state":         {{"state/vm", "."}},
		"record":        {{"run/vm/launch.lock", ""}, {"run/vm/record.json", "record.json"}},
		"new record":    {{"run/vm/launch.lock", ""}, {"run/vm/.record.json.new", "record.json"}},
		"locks":         {{"run/vm/launch.lock", "launch.lock"}, {"run/vm/vm.lock", "vm.lock"}},
		"logs": {
			{"state/vm/console.log", "console.log"},
			{"state/vm/events.log", "events.log"},
			{"state/vm/qemu.log", "qemu.log"},
			{"state/vm/record.json", "record.json"},
		},
		"previous logs":   {{"state/vm/console.log", ""}, {"state/vm/previous", "."}},
		"kept record":     {{"state/vm/.record.json.new", "record.json"}},
		"record is pipe":  {{"run/vm/launch.lock", ""}, {"run/vm/record.json", "|"}},
		"logs are pipes":  {{"state/vm/record.json", "|"}, {"state/vm/events.log", "|"}, {"state/vm/console.log", "|"}},
		"record is flood": {{"run/vm/launch.lock", ""}, {"run/vm/record.json", "#"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.write("vm.toml", smallSpec)
			dir, unchanged := h.victim()
			for _, p := range plant {
				file := filepath.Join(h.work, p.file)
				if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
					t.Fatal(err)
				}
				var err error
				switch p.target {
				case "":
					err = os.WriteFile(file, nil, 0o600)
				case "|":
					err = unix.Mkfifo(file, 0o600)
				case "#":
					err = os.WriteFile(file, []byte(strings.Repeat("[", 2<<20)), 0o600)
				default:
					err = os.Symlink(filepath.Join(dir, p.target), file)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			for _, args := range [][]string{
				{"ps", "--all"},
				{"inspect", "vm"},
				{"logs", "vm"},
				{"events", "vm"},
				{"logs", "vm", "--previous"},
				{"wait", "vm"},
				{"start", "vm.toml", "--hold"},
				{"ps"},
				{"console", "vm"},
				{"release", "vm"},
				{"stop", "vm", "--timeout", "1s"},
				{"stop", "vm", "--now"},
				{"ps", "--all"},
			} {
				ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
				cmd := h.command("vmlatch", args...)
				limited := exec.CommandContext(ctx, cmd.Path, cmd.Args[1:]...)
				limited.Env, limited.Dir = cmd.Env, cmd.Dir
				if args[0] == "console" {
					limited.Cancel = func() error { return limited.Process.Signal(os.Interrupt) }
					time.AfterFunc(time.Second/2, cancel)
				}
				out, err := limited.CombinedOutput()
				if ctx.Err() != nil && args[0] != "console" {
					t.Errorf("%v hangs", args)
				}
				cancel()
				if strings.Contains(string(out), "goroutine ") || strings.Contains(string(out), "years of work") {
					t.Errorf("%v: %v: %s", args, err, out)
				}
				if err := unchanged(); err != nil {
					t.Fatalf("after %v (%s): the victim's directory: %v", args, out, err)
				}
			}
			if left := processes(h.work + "/"); len(left) > 0 {
				t.Errorf("processes are left: %v", left)
			}
		})
	}
}

// TestTwoUsers: a user who does not own a run directory can neither look into it nor
// start a VM in it; root acts as its owner.
func TestTwoUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("takes root, to be two users")
	}
	a, b := newHostOf(t, 64011), newHostOf(t, 64012)
	for _, h := range []*host{a, b} {
		h.write("vm.toml", smallSpec)
		h.run("vmlatch", "start", "vm.toml", "--hold") // both use the same name
	}
	of := []string{"--run-dir", filepath.Join(a.work, "run"), "--state-dir", filepath.Join(a.work, "state")}
	for _, args := range [][]string{
		{"ps"},
		{"stop", "vm", "--now"},
		{"inspect", "vm"},
		{"console", "vm"},
		{"release", "vm"},
		{"start", "vm.toml"},
	} {
		out, err := b.attempt(b.command("vmlatch", append(args, of...)...))
		denied := strings.Contains(out, "permission denied") ||
			strings.Contains(out, "must be a directory of this user")
		if err == nil || !denied {
			t.Errorf("another user's %v: %v, want it denied: %s", args, err, out)
		}
	}
	a.shows("ps after that", a.run("vmlatch", "ps"), "paused")

	root := &host{t: t, work: a.work, bin: a.bin, env: a.env}
	root.run("vmlatch", "stop", "vm", "--now")
	root.run("vmlatch", "start", "vm.toml", "--hold")
	for pid, line := range processes("guest=vm") {
		var st unix.Stat_t
		err := unix.Stat(fmt.Sprintf("/proc/%d", pid), &st)
		if strings.Contains(line, a.work) && (err != nil || st.Uid != 64011) {
			t.Errorf("root's QEMU in that directory has user %d, want 64011: %v", st.Uid, err)
		}
	}
	_ = filepath.WalkDir(filepath.Join(a.work, "run"), func(p string, d os.DirEntry, err error) error {
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil || st.Uid != 64011 {
			t.Errorf("%s belongs to user %d, want 64011: %v", p, st.Uid, err)
		}
		return nil
	})
	a.run("vmlatch", "release", "vm")
	a.run("vmlatch", "stop", "vm", "--now")
	b.run("vmlatch", "stop", "vm", "--now")

	// The second user has made a directory where the first would make one.
	shared := filepath.Join(b.work, "shared")
	if err := os.Mkdir(shared, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(shared, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	trap := filepath.Join(shared, "vmlatch-64011")
	for what, set := range map[string]func() error{
		"a directory": func() error { return os.Mkdir(trap, 0o777) },
		"a link":      func() error { return os.Symlink(filepath.Join(b.work, "run"), trap) },
	} {
		if err := set(); err != nil {
			t.Fatal(err)
		}
		if err := os.Lchown(trap, b.uid, b.uid); err != nil {
			t.Fatal(err)
		}
		cmd := a.command("vmlatch", "start", "vm.toml", "--hold")
		cmd.Env = append(cmd.Env, "VMLATCH_RUN_DIR=", "XDG_RUNTIME_DIR=", "TMPDIR="+shared)
		if out, err := a.attempt(cmd); err == nil || !strings.Contains(out, trap) {
			t.Errorf("%s of another user: %v, want an error that names %s: %s", what, err, trap, out)
		}
		if err := os.Remove(trap); err != nil {
			t.Errorf("%s has something in it: %v", what, err)
		}
	}
}

// changing are the system calls by which a start changes anything.
var changing = []string{
	"mkdirat", "renameat", "unlinkat", "flock", "bind", "listen", "connect", "socket", "socketpair", "openat",
	"write", "sendmsg", "clone", "clone3", "vfork", "wait4", "close",
}

// TestKillAtSystemCalls kills a start with SIGKILL at its first, second, … call of
// each kind. Wherever that is, the next command cleans up, and the name is free.
func TestKillAtSystemCalls(t *testing.T) {
	t.Parallel()
	needProgram(t, "strace")
	h := newHost(t)
	h.write("vm.toml", smallSpec)
	h.run("vmlatch", "plan", "vm.toml")
	if out, err := exec.Command("strace", "-o", "/dev/null", "true").CombinedOutput(); err != nil {
		t.Skipf("strace: %v: %s", err, out)
	}
	kills := 0
	for _, call := range changing {
		step := 1
		if call == "close" || call == "openat" { // many calls, most of them before anything is done
			step = 2
		}
		for n := 1; n < 400; n += step {
			cmd := h.command("vmlatch", "start", "vm.toml", "--hold")
			kill := fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, n)
			traced := wrapped(cmd, "strace", "-f", "-b", "execve", "-o", "/dev/null", "-e", "trace="+call, "-e", kill)
			out, err := h.attempt(traced)
			if err == nil {
				h.run("vmlatch", "stop", "vm", "--now")
				break
			}
			if strings.TrimSpace(out) != "" && !strings.Contains(out, "Killed") {
				t.Logf("%s %d: %v: %s", call, n, err, out)
			}
			kills++
			if out := h.run("vmlatch", "ps"); strings.Contains(
				out,
				"paused",
			) { // it was killed after its work was done
				h.run("vmlatch", "stop", "vm", "--now")
				h.clearEnded()
			}
			waitNothing(t, h.work)
			if t.Failed() {
				t.Fatalf("after a kill at %s, call %d", call, n)
			}
		}
		h.clearEnded()
		h.run("vmlatch", "start", "vm.toml", "--hold")
		h.run("vmlatch", "stop", "vm", "--now")
		h.clearEnded()
	}
	t.Logf("%d kills", kills)
	if kills < 50 {
		t.Errorf("%d kills, want at least 50", kills)
	}
}
