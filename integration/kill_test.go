package integration

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const ownerScript = `cat > m.json
exec latchkey secret --owner guest.owner --measurement m.json \
  --firmware OVMF.amdsev.fd --kernel vmlinuz --initrd initrd.img \
  --cmdline "console=ttyS0 quiet vmlatch.secret=0x810000+0xc00" --entry disk=passphrase --out -
`

// prepareUnattended writes a spec whose latch is opened by a command.
func (h *host) prepareUnattended() {
	h.t.Helper()
	spec, err := os.ReadFile(filepath.Join(top(), "examples/sev/guest.toml"))
	if err != nil {
		h.t.Fatal(err)
	}
	h.write("guest.toml", string(spec)+"owner = [\"sh\", \"owner.sh\"]\n")
	h.write("owner.sh", ownerScript)
	h.write("passphrase", "correct horse battery")
}

// steps runs a whole start and returns the names of its steps.
func (h *host) steps(args ...string) []string {
	h.t.Helper()
	h.renewOwner()
	var errs bytes.Buffer
	cmd := h.command("vmlatch", append([]string{"start", "guest.toml", "--emulate"}, args...)...)
	cmd.Env = append(cmd.Env, "VMLATCH_DEBUG=steps")
	cmd.Stderr = &errs
	if err := cmd.Run(); err != nil {
		h.t.Fatalf("%v\n%s", err, errs.String())
	}
	h.run("vmlatch", "stop", "guest", "--now")
	h.clearEnded()
	var steps []string
	for line := range strings.Lines(errs.String()) {
		_, step, ok := strings.Cut(strings.TrimSpace(line), " step ")
		if ok && step != "done" { // by then the command has done its work
			steps = append(steps, step)
		}
	}
	return steps
}

// TestKillAtEveryStep kills, at each step of a start, as the start itself names them,
// vmlatch, QEMU and the emulator: the next command removes what is left of the launch,
// and a VM of the same name can be started. It runs as a user that no other test has, so that the
// user's keys can be counted.
func TestKillAtEveryStep(t *testing.T) {
	t.Parallel()
	uid := 64000
	for name, prepare := range map[string]func(*host){
		"sev": func(h *host) {
			h.prepareUnattended()
			h.session()
			owner, err := os.ReadFile(filepath.Join(h.work, "guest.owner"))
			if err != nil {
				h.t.Fatal(err)
			}
			h.write("unused.owner", string(owner))
		},
		"kept logs": func(h *host) {
			h.write("host.toml", "[logs]\nkeeper = true\n")
			h.env = append(h.env, "VMLATCH_CONFIG="+filepath.Join(h.work, "host.toml"))
			h.write("guest.toml", strings.Replace(mktmeSpec, "keyed", "guest", 1))
		},
		"mktme": func(h *host) { h.write("guest.toml", strings.Replace(mktmeSpec, "keyed", "guest", 1)) },
	} {
		uid++
		own := uid
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHostOf(t, own)
			prepare(h)
			modes := [][]string{{"--hold"}, {}}
			if name == "kept logs" { // which one makes no difference to
				modes = modes[1:]
			}
			for _, mode := range modes {
				steps := h.steps(mode...)
				if len(steps) < 7 {
					t.Fatalf("only %d steps: %v", len(steps), steps)
				}
				keys := h.keys()
				for _, step := range steps {
					for _, victim := range []string{"vmlatch", "qemu-system", "swtee"} {
						t.Run(strings.Join(append(mode, step, victim), "/"), func(t *testing.T) {
							h := &host{t: t, work: h.work, bin: h.bin, env: h.env, uid: h.uid}
							h.killAt(step, victim, mode)
							within(t, "a key is left", func() bool { return h.keys() <= keys })
							waitNothing(t, h.work)
							h.renewOwner()
							h.run("vmlatch", append([]string{"start", "guest.toml", "--emulate"}, mode...)...)
							h.run("vmlatch", "stop", "guest", "--now")
							h.clearEnded()
						})
					}
				}
			}
		})
	}
}

// keys counts the user's keys, and requires that this process sees no key of a VM.
func (h *host) keys() int {
	h.t.Helper()
	if b, err := os.ReadFile("/proc/keys"); err == nil && bytes.Contains(b, []byte("vmlatch:")) {
		h.t.Errorf("a VM's key is seen from outside:\n%s", b)
	}
	return keysOfUser(h.t, h.uid)
}

// renewOwner makes a used session usable again, which only a test may do. Making a new one
// for each kill would take minutes.
func (h *host) renewOwner() {
	h.t.Helper()
	if b, err := os.ReadFile(filepath.Join(h.work, "unused.owner")); err == nil {
		h.write("guest.owner", string(b))
	}
}

// killAt starts a VM, stops the launch before the step, kills the victim there, and lets
// the launch go on if vmlatch is still alive.
func (h *host) killAt(step, victim string, mode []string) {
	t := h.t
	t.Helper()
	h.renewOwner()
	cmd := h.command("vmlatch", append([]string{"start", "guest.toml", "--emulate", "--stop-at", step}, mode...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitStopped(t, cmd.Process.Pid)
	if victim == "vmlatch" {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	} else {
		for pid, line := range processes(h.work + "/") {
			if strings.HasPrefix(filepath.Base(strings.Fields(line)[0]), victim) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		_ = cmd.Process.Signal(syscall.SIGCONT)
		_ = cmd.Wait() // it fails, unless it did not need the victim any more
	}
	h.run("vmlatch", "ps")
	if victim != "vmlatch" && cmd.ProcessState.Success() {
		h.run("vmlatch", "ps") // it finished its launch before or after the victim's death
		_ = h.command("vmlatch", "stop", "guest", "--now").Run()
		h.clearEnded()
	}
}

// waitStopped waits until a process is stopped by a signal.
func waitStopped(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		switch stateOf(pid) {
		case "T":
			return
		case "Z", "":
			t.Fatal("it ended before the step")
		}
	}
	t.Fatal("it never reached the step")
}

// runs reports whether a process has not ended, reaped or not.
func runs(pid int) bool { return !slices.Contains([]string{"Z", "X", ""}, stateOf(pid)) }

// stateOf is the letter of a process's state (proc(5)); "" if there is none.
func stateOf(pid int) string {
	b, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	_, rest, _ := strings.Cut(string(b), ") ")
	state, _, _ := strings.Cut(rest, " ")
	return state
}

// waitNothing requires that nothing is left. Processes that were killed may take
// a moment to vanish from /proc; files may not.
func waitNothing(t *testing.T, work string) {
	t.Helper()
	var left []string
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if left = leftovers(work); len(left) == 0 {
			return
		}
		if !strings.HasPrefix(left[0], "process") {
			break
		}
	}
	if len(left) > 0 {
		var files []string
		_ = filepath.WalkDir(work, func(p string, d os.DirEntry, err error) error {
			if !d.Type().IsDir() && d.Type()&os.ModeSymlink == 0 {
				files = append(files, p)
			}
			return nil
		})
		t.Fatalf("left behind:\n%s\namong %s", strings.Join(left, "\n"), files)
	}
}

// TestHeldVMSurvivesItsCommands: killing a command that works on a held VM does not end
// the VM, and when the VM ends it leaves nothing.
func TestHeldVMSurvivesItsCommands(t *testing.T) {
	h := newHost(t).race()
	h.prepareUnattended()
	h.session()
	h.run("vmlatch", "start", "guest.toml", "--emulate", "--hold")
	for _, args := range [][]string{
		{"measure", "guest"},
		{"inject", "guest", "missing"},
		{"release", "guest"},
		{"qmp", "guest", "query-status"},
	} {
		cmd := h.command("vmlatch", args...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(15 * time.Millisecond) // somewhere in the middle
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if out := h.run("vmlatch", "ps"); !strings.Contains(out, "closed until secret") {
			t.Fatalf("after killing %v: %s", args, out)
		}
	}
	h.run("vmlatch", "measure", "guest")
	for pid, line := range processes(h.work + "/") {
		if strings.Contains(line, "qemu-system") {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	within(t, "the dead VM is not cleared away", func() bool {
		return !strings.Contains(h.run("vmlatch", "ps"), "guest")
	})
	h.clearEnded()
	waitNothing(t, h.work)
}

// TestStoppedQEMU: a QEMU that does not answer can be ended within a bounded time.
func TestStoppedQEMU(t *testing.T) {
	h := newHost(t).race()
	h.write("vm.toml", "memory = \"32MiB\"\naccel = \"tcg\"\n")
	h.run("vmlatch", "start", "vm.toml", "--hold")
	for pid, line := range processes(h.work + "/") {
		if strings.Contains(line, "qemu-system") {
			_ = syscall.Kill(pid, syscall.SIGSTOP)
		}
	}
	start := time.Now()
	h.run("vmlatch", "stop", "vm", "--timeout", "1s")
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("stopping took %v", took)
	}
	h.clearEnded()
	waitNothing(t, h.work)
}

// TestParallelStartsOfOneName: exactly one wins, the others leave nothing.
func TestParallelStartsOfOneName(t *testing.T) {
	h := newHost(t).race()
	h.write("vm.toml", "memory = \"32MiB\"\naccel = \"tcg\"\n")
	const n = 50
	cmds := make([]*exec.Cmd, n)
	for i := range cmds {
		cmds[i] = h.command("vmlatch", "start", "vm.toml", "--hold")
		if err := cmds[i].Start(); err != nil {
			t.Fatal(err)
		}
	}
	won := 0
	for _, cmd := range cmds {
		if cmd.Wait() == nil {
			won++
		}
	}
	if won != 1 {
		t.Errorf("%d of %d starts succeed", won, n)
	}
	if qemus := len(processes(h.work + "/")); qemus != 1 {
		t.Errorf("%d processes", qemus)
	}
	h.run("vmlatch", "stop", "vm")
}

// TestInterruptedStart: Ctrl-C during a launch leaves nothing.
func TestInterruptedStart(t *testing.T) {
	h := newHost(t).race()
	h.prepareUnattended()
	asked := filepath.Join(h.work, "asked")
	h.write("owner.sh", "touch "+asked+"; exec sleep 100\n")
	h.session()
	cmd := h.command("vmlatch", "start", "guest.toml", "--emulate")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(asked); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	_ = cmd.Process.Signal(os.Interrupt)
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d, want 130: %s", code, errs.String())
	}
	waitNothing(t, h.work)
}
