package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// editRecord changes a VM's record as the owner of the run directory could.
func (h *host) editRecord(name string, change func(map[string]any)) {
	h.t.Helper()
	file := filepath.Join(h.work, "run", name, "record.json")
	b, err := os.ReadFile(file)
	if err != nil {
		h.t.Fatal(err)
	}
	var rec map[string]any
	if err := json.Unmarshal(b, &rec); err != nil {
		h.t.Fatal(err)
	}
	change(rec)
	if b, err = json.Marshal(rec); err == nil {
		err = os.WriteFile(file, b, 0o600)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// TestRootIsNotTricked: a user's directories never make root run a program of that
// user, not even before there is a run directory.
func TestRootIsNotTricked(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("takes root")
	}
	h := newHostOf(t, 64021)
	h.write("evil", "#!/bin/sh\necho \"$(id -u)\" >> "+h.work+"/ran-as\nexit 1\n")
	if err := os.Chmod(filepath.Join(h.work, "evil"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.write("guest.toml", "memory = \"32MiB\"\naccel = \"tcg\"\n")
	h.run("vmlatch", "start", "guest.toml")
	h.run("vmlatch", "stop", "guest", "--now")
	h.write("guest.toml", fmt.Sprintf(`
memory = "32MiB"
qemu = "%s/evil"
[firmware]
image = "OVMF.amdsev.fd"
[confidential]
technology = "sev-snp"
[latch]
until = "nothing"
`, h.work))
	root := &host{t: t, work: h.work, bin: h.bin, env: h.env}
	for _, prepare := range []func(){
		func() {}, // the run directory is the user's
		func() { _ = os.RemoveAll(filepath.Join(h.work, "run")) },
		func() { root.env = append(root.env, "VMLATCH_RUN_DIR="+t.TempDir()) }, // root's, with the user's records
	} {
		prepare()
		for _, args := range [][]string{
			{"restart", "guest"},
			{"start", "guest.toml"},
			{"__complete", "stop", ""},
			{"stop", "guest"},
			{"ps", "--all"},
		} {
			_, _ = root.attempt(root.command("vmlatch", args...))
		}
		b, _ := os.ReadFile(filepath.Join(h.work, "ran-as"))
		for line := range strings.Lines(string(b)) {
			if strings.TrimSpace(line) == "0" {
				t.Fatal("the user's program ran as root")
			}
		}
		var st unix.Stat_t
		if unix.Lstat(filepath.Join(h.work, "run"), &st) == nil && st.Uid == 0 {
			t.Fatal("root made a directory in the user's place")
		}
	}
}

// TestStopKnowsItsVM: a stop that sleeps through the end of its VM does not touch a
// later VM of the same name.
func TestStopKnowsItsVM(t *testing.T) {
	h := newHost(t)
	h.write("vm.toml", smallSpec)
	h.run("vmlatch", "start", "vm.toml")
	slow := h.command("vmlatch", "stop", "vm", "--timeout", "60s")
	if err := slow.Start(); err != nil {
		t.Fatal(err)
	}
	within(t, "it does not stop", func() bool { return strings.Contains(h.run("vmlatch", "ps"), "stopping") })
	_ = slow.Process.Signal(syscall.SIGSTOP)
	h.run("vmlatch", "stop", "vm", "--now")
	h.run("vmlatch", "start", "vm.toml")
	_ = slow.Process.Signal(syscall.SIGCONT)
	if err := slow.Wait(); err == nil || slow.ProcessState.ExitCode() != 5 {
		t.Errorf("the VM was killed by another stop: %v, want exit code 5", err)
	}
	h.shows("the later VM", h.run("vmlatch", "ps"), "running")
}

// TestParallelRestarts: whichever command wins, one VM runs at the end, and no command
// is killed by another.
func TestParallelRestarts(t *testing.T) {
	h := newHost(t).race()
	h.write("vm.toml", smallSpec)
	h.run("vmlatch", "start", "vm.toml")
	for _, mode := range []string{"--now", "--timeout=1s"} {
		for range 3 {
			var wg sync.WaitGroup
			var mu sync.Mutex
			won, said := 0, ""
			for range 6 {
				wg.Go(func() {
					out, err := h.command("vmlatch", "restart", "vm", mode).CombinedOutput()
					mu.Lock()
					defer mu.Unlock()
					if said += string(out); err == nil {
						won++
					} else if strings.Contains(err.Error(), "signal") {
						t.Errorf("a command was killed: %v", err)
					}
				})
			}
			wg.Wait()
			if out := h.run("vmlatch", "ps"); won < 1 || !strings.Contains(out, "running") {
				t.Fatalf("%d won; %s\n%s", won, out, said)
			}
			if n := len(processes(h.work + "/")); n != 1 {
				t.Fatalf("%d processes", n)
			}
		}
	}
}

// TestWaitForALaunch: a VM that is being launched has not ended.
func TestWaitForALaunch(t *testing.T) {
	h := newHost(t).race()
	h.write("vm.toml", smallSpec)
	start := h.command("vmlatch", "start", "vm.toml", "--stop-at", "record")
	if err := start.Start(); err != nil {
		t.Fatal(err)
	}
	waitStopped(t, start.Process.Pid)
	ended := make(chan string, 2)
	for _, args := range [][]string{{"wait", "vm"}, {"events", "--follow", "vm"}} {
		go func() {
			out, err := h.command("vmlatch", args...).CombinedOutput()
			ended <- fmt.Sprintf("%v: %v: %s", args, err, out)
		}()
	}
	time.Sleep(300 * time.Millisecond)
	_ = start.Process.Signal(syscall.SIGCONT)
	if err := start.Wait(); err != nil {
		t.Fatal(err)
	}
	select {
	case s := <-ended:
		t.Fatalf("while the VM runs: %s", s)
	case <-time.After(time.Second):
	}
	h.run("vmlatch", "stop", "vm", "--now")
	for range 2 {
		if s := <-ended; !strings.HasPrefix(s, "[wait vm]: exit status 5") && !strings.Contains(s, "VMLATCH_ENDED") {
			t.Errorf("at its end: %s", s)
		}
	}
	given := h.command("vmlatch", "start", "vm.toml", "--stop-at", "record")
	if err := given.Start(); err != nil {
		t.Fatal(err)
	}
	waitStopped(t, given.Process.Pid)
	go func() {
		out, err := h.command("vmlatch", "wait", "vm").CombinedOutput()
		ended <- fmt.Sprintf("%v: %s", err, out)
	}()
	time.Sleep(300 * time.Millisecond)
	_ = given.Process.Kill()
	_ = given.Wait()
	h.shows("wait for a launch that was killed", <-ended, "its launch was given up")
}

// TestPipesAsFiles: a file that would block forever when it is opened is refused.
func TestPipesAsFiles(t *testing.T) {
	h := newHost(t)
	if err := unix.Mkfifo(filepath.Join(h.work, "pipe.toml"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"start", "pipe.toml"},
		{"check", "pipe.toml"},
		{"ps", "--config", "pipe.toml"},
		{"start", "--all", "."},
	} {
		h.shows(strings.Join(args, " "), h.fails("", args...), "not a regular file")
	}
}

// TestOwnerLeavesNothing: whatever the owner's command has started ends with that
// command, with vmlatch, or, after vmlatch is killed, with the next command.
func TestOwnerLeavesNothing(t *testing.T) {
	h := newHost(t)
	h.prepareUnattended()
	h.session()
	spec, err := os.ReadFile(filepath.Join(h.work, "guest.toml"))
	if err != nil {
		t.Fatal(err)
	}
	h.write("guest.toml", string(spec)+"timeout = \"1500ms\"\n")
	mark := filepath.Join(h.work, "marked")
	h.write("owner.sh", fmt.Sprintf(`printf '\033]0;title\007' >&2
sh -c 'sleep 777 && : %[1]s' | cat &
sh -c 'sleep 778 && : %[1]s' | cat
`, mark))
	for _, how := range []string{"timeout", "interrupt", "kill"} {
		var out strings.Builder
		cmd := h.command("vmlatch", "start", "guest.toml", "--emulate")
		cmd.Stderr = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		within(t, "the owner's command does not run", func() bool { return len(processes(mark)) >= 2 })
		switch how {
		case "interrupt":
			_ = cmd.Process.Signal(os.Interrupt)
		case "kill":
			_ = cmd.Process.Kill()
		}
		_ = cmd.Wait()
		h.run("vmlatch", "ps")
		if how == "timeout" {
			h.shows("start", out.String(), "did not answer within")
			if strings.Contains(out.String(), "\x1b") {
				t.Errorf("the owner's escape sequence is printed: %q", out.String())
			}
		}
		within(t, "after "+how+" the owner's processes are left", func() bool { return len(processes(mark)) == 0 })
		if how == "timeout" {
			h.shows("inspect", h.run("vmlatch", "inspect", "guest"), "did not answer within")
			h.run("vmlatch", "rm", "guest")
		}
		waitNothing(t, h.work)
	}
}

// TestNoForeignDescriptors: QEMU does not inherit what the caller has open.
func TestNoForeignDescriptors(t *testing.T) {
	h := newHost(t)
	h.write("vm.toml", smallSpec)
	nine, err := os.Create(filepath.Join(h.work, "nine"))
	if err != nil {
		t.Fatal(err)
	}
	defer nine.Close()
	cmd := h.command("vmlatch", "start", "vm.toml")
	cmd.ExtraFiles = []*os.File{nine, nine, nine}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for pid := range processes("guest=vm") {
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, fd := range fds {
			if to, _ := os.Readlink(fd); to == nine.Name() {
				t.Errorf("QEMU has %s open", to)
			}
		}
	}
}

// TestHostileRecord: a record's contents reach a terminal as text only, and no command
// panics on a record that lacks something.
func TestHostileRecord(t *testing.T) {
	h := newHost(t)
	h.write("vm.toml", smallSpec)
	h.run("vmlatch", "start", "vm.toml", "--hold")
	h.editRecord("vm", func(r map[string]any) {
		r["technology"], r["memory"], r["qemu-version"] = "\x1b]0;pwn\x07x", "\x1b[31mred", "\x1b[2J"
		r["latch"].(map[string]any)["until"] = "\x1b[5m"
	})
	for _, args := range [][]string{{"ps"}, {"inspect", "vm"}} {
		if out := h.run("vmlatch", args...); strings.Contains(out, "\x1b") {
			t.Errorf("%v: %q", args, out)
		}
	}
	h.editRecord("vm", func(r map[string]any) { r["technology"], r["state"] = "sev", "paused" })
	for _, args := range [][]string{
		{"measure", "vm"},
		{"inspect", "vm"},
		{"release", "vm"},
		{"qmp", "vm", "query-status"},
	} {
		out, _ := h.attempt(h.command("vmlatch", args...))
		if strings.Contains(out, "goroutine ") {
			t.Errorf("%v: %s", args, out)
		}
	}
	h.editRecord("vm", func(r map[string]any) { r["memory"] = strings.Repeat("x", 2<<20) })
	h.run("vmlatch", "ps") // a VM without a record was never completely launched
	h.clearEnded()
	waitNothing(t, h.work)
}

// TestBadManager: if the service manager cannot be notified, nothing is started.
func TestBadManager(t *testing.T) {
	h := newHost(t)
	h.write("vm.toml", smallSpec)
	for addr, code := range map[string]int{
		"/nonexistent":                 3,
		"relative":                     2,
		"@":                            3,
		"/etc/passwd":                  3,
		"/" + strings.Repeat("x", 200): 3,
	} {
		cmd := h.command("vmlatch", "start", "vm.toml")
		cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+addr)
		out, err := h.attempt(cmd)
		if err == nil || cmd.ProcessState.ExitCode() != code || !strings.Contains(out, "hint: NOTIFY_SOCKET") {
			t.Errorf("%q: %v, want code %d and a hint: %s", addr, err, code, out)
		}
		waitNothing(t, h.work)
	}
}

// TestReleaseCutShort: if a release dies after QEMU has let the guest run, the next
// command notices and records it.
func TestReleaseCutShort(t *testing.T) {
	h := newHost(t)
	h.write("vm.toml", smallSpec)
	h.run("vmlatch", "start", "vm.toml", "--hold")
	dir := filepath.Join(h.work, "run/vm")
	before, err := os.ReadFile(filepath.Join(dir, "record.json"))
	if err != nil {
		t.Fatal(err)
	}
	h.editRecord("vm", func(r map[string]any) { r["state"], r["released"] = "running", r["started"] })
	if err := os.Rename(filepath.Join(dir, "record.json"), filepath.Join(dir, ".record.json.new")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "record.json"), before, 0o600); err != nil {
		t.Fatal(err)
	}
	h.run("vmlatch", "qmp", "vm", "query-status") // the guest is not running: nothing was released
	h.shows("ps before", h.run("vmlatch", "ps"), "paused")
	h.run("vmlatch", "qmp", "vm", "cont")
	h.run("vmlatch", "qmp", "vm", "query-status")
	h.shows("ps after", h.run("vmlatch", "ps"), "running")
}
