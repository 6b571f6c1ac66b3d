package integration

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/integration/qemus"
)

// tpmSpec is a machine that has a TPM and boots nothing that would use it.
const tpmSpec = "name = \"vm\"\nmemory = \"64MiB\"\n[[disk]]\nimage = \"disk.img\"\n[tpm]\n"

// newTPMHost is a host with a PATH, and a spec for a VM with a TPM; more is added to it.
func newTPMHost(t *testing.T, path, more string) *host {
	t.Helper()
	h := newHost(t)
	h.env = append(h.env, path)
	h.write("disk.img", strings.Repeat("\x00", 1<<20))
	h.write("vm.toml", tpmSpec+more)
	return h
}

// swtpms are the processes of swtpm with files under a directory.
func swtpms(work string) (pids []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		if b, err := os.ReadFile(filepath.Join(d, "cmdline")); err != nil || !bytes.Contains(b, []byte("swtpm")) {
			continue
		}
		fds, _ := filepath.Glob(filepath.Join(d, "fd", "*"))
		for _, fd := range fds {
			if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, work+"/") {
				pid, _ := strconv.Atoi(filepath.Base(d))
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids
}

// noTPM waits until no swtpm of a host is left.
func (h *host) noTPM(what string) {
	h.t.Helper()
	var left []int
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if left = swtpms(h.work); len(left) == 0 {
			return
		}
	}
	h.t.Errorf("%s: swtpm is left behind: %v", what, left)
	for _, pid := range left {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

func (h *host) hasState(want bool, what string) {
	h.t.Helper()
	_, err := os.Stat(filepath.Join(h.work, "state", "vm", "tpm", "tpm2-00.permall"))
	if (err == nil) != want {
		h.t.Errorf("%s: the TPM's state is there: %t, want %t", what, err == nil, want)
	}
}

// TestTPMLives: a TPM ends with its VM however that ends, and its state is what a person keeps or
// removes, and nothing else does.
func TestTPMLives(t *testing.T) {
	t.Parallel()
	qemus.EachTPM(t, tpmLives)
}

func tpmLives(t *testing.T, path string) {
	t.Parallel()
	h := newTPMHost(t, path, "")
	state := filepath.Join(h.work, "state/vm/tpm/tpm2-00.permall")
	h.run("vmlatch", "start", "vm.toml")
	first := read(t, state)
	pid := swtpms(h.work)
	if len(pid) != 1 {
		t.Fatalf("swtpm runs as %v, want one process", pid)
	}
	h.shows("inspect", h.run("vmlatch", "inspect", "vm"), "crb, persistent, not encrypted; the host's word only")
	if out, err := h.attempt(h.command("vmlatch", "rm", "--tpm", "vm")); err == nil {
		t.Errorf("the TPM of a running VM is removed: %s", out)
	}

	// Its helper has what it needs and no more.
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid[0]))
	for _, fd := range fds {
		to, _ := os.Readlink(fd)
		if strings.Contains(to, "disk.img") || strings.Contains(to, "vm.lock") || strings.Contains(to, "qmp.sock") {
			t.Errorf("swtpm has %s open", to)
		}
	}

	// It is killed: that is shown, and the VM lives.
	_ = syscall.Kill(pid[0], syscall.SIGKILL)
	h.noTPM("killed")
	h.shows("ps", h.run("vmlatch", "ps"), "running (its TPM has gone: the guest's next reset ends QEMU)")
	h.shows("inspect", h.run("vmlatch", "inspect", "vm"), "it has GONE")
	if out := h.run("vmlatch", "inspect", "--json", "vm"); !strings.Contains(out, `"tpm-gone": true`) {
		t.Errorf("the JSON lacks it: %s", out)
	}
	h.run("vmlatch", "stop", "vm", "--now")

	// QEMU is killed: swtpm ends by itself, with no command's help.
	h.run("vmlatch", "start", "vm.toml")
	for p := range processes(h.work + "/disk.img") {
		_ = syscall.Kill(p, syscall.SIGKILL)
	}
	h.noTPM("QEMU killed")
	h.hasState(true, "QEMU killed")

	// One that hangs does not make an ended VM look alive, and is ended.
	h.run("vmlatch", "start", "vm.toml")
	if pid = swtpms(h.work); len(pid) != 1 {
		t.Fatalf("swtpm runs as %v, want one process", pid)
	}
	_ = syscall.Kill(pid[0], syscall.SIGSTOP)
	qemu := slices.Collect(maps.Keys(processes(h.work + "/disk.img")))
	for _, p := range qemu {
		_ = syscall.Kill(p, syscall.SIGKILL)
	}
	within(t, "QEMU does not end", func() bool { return !slices.ContainsFunc(qemu, runs) })
	if out := h.run("vmlatch", "ps"); strings.Contains(out, "running") {
		t.Errorf("a VM that has ended looks alive: %s", out)
	}
	h.noTPM("stopped")

	// The state is the same TPM's, and stays until it is removed on purpose.
	if again := read(t, state); again[:10] != first[:10] || len(again) != len(first) {
		t.Errorf("the state is another's: %d bytes, were %d", len(again), len(first))
	}
	out, err := h.attempt(h.command("vmlatch", "rm", "vm"))
	if err == nil {
		t.Error("rm takes a TPM along")
	}
	h.shows("rm", out, "keys and counters of its TPM would be lost", "rm --tpm")
	h.hasState(true, "rm")
	h.run("vmlatch", "rm", "--tpm", "vm")
	waitNothing(t, h.work)
}

// TestTPMFails: a start that comes to nothing leaves no process and no state that was not there.
func TestTPMFails(t *testing.T) {
	t.Parallel()
	qemus.EachTPM(t, tpmFails)
}

func tpmFails(t *testing.T, path string) {
	t.Parallel()
	h := newTPMHost(t, path, "")
	fails := func(what, more, want string) {
		t.Helper()
		h.write("bad.toml", tpmSpec+more)
		out, err := h.attempt(h.command("vmlatch", "start", "bad.toml"))
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v: %s\nwant %q", what, err, out, want)
		}
		h.noTPM(what)
	}
	// QEMU ends before it has used the TPM, and after.
	fails("a bad object", "[[object]]\nqom-type = \"rng-random\"\nid = \"r\"\nfilename = \"/missing\"\n", "/missing")
	fails("a bad device", "[[device]]\ndriver = \"virtio-rng-pci\"\nbogus = 1\n", "bogus")
	h.hasState(false, "starts that failed")
	h.write("key", strings.Repeat("k", 32))
	h.write("short", "12345")
	fails("a short key", "key = \"short\"\n", "5 bytes, want 32 of random data")
	fails("a long key", "key = \"disk.img\"\n", "want 32 of random data")
	fails("no key", "key = \"missing\"\n", "missing")

	// Encrypted state takes its key, and no other.
	h.write("vm.toml", tpmSpec+"key = \"key\"\n")
	h.run("vmlatch", "start", "vm.toml")
	if got := read(t, filepath.Join(h.work, "state/vm/tpm/tpm2-00.permall")); got[5]&1 == 0 {
		t.Errorf("the state is not encrypted: header %x", got[:10])
	}
	for pid := range processes(h.work + "/disk.img") {
		for _, f := range []string{"cmdline", "environ"} {
			if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, f)); bytes.Contains(b, []byte("kkkkkkkk")) {
				t.Errorf("the key stands in %s", f)
			}
		}
	}
	h.run("vmlatch", "stop", "vm", "--now")
	h.noTPM("stop")
	fails("without its key", "", "its state is encrypted, and the spec names no key")
	h.write("other", strings.Repeat("o", 32))
	fails("another key", "key = \"other\"\n", "TPM")
	h.hasState(true, "another key")
	h.run("vmlatch", "start", "vm.toml")
	h.run("vmlatch", "stop", "vm", "--now")

	// Damaged state is said, and not replaced.
	file := filepath.Join(h.work, "state/vm/tpm/tpm2-00.permall")
	whole := read(t, file)
	if err := os.WriteFile(file, []byte(whole[:len(whole)/2]), 0o600); err != nil {
		t.Fatal(err)
	}
	fails("half a state", "key = \"key\"\n", "the TPM's state is damaged")
	if read(t, file) != whole[:len(whole)/2] {
		t.Error("a damaged state was replaced")
	}

	// A link in the place of its directory is not followed.
	h.run("vmlatch", "rm", "--tpm", "vm")
	if err := os.MkdirAll(filepath.Join(h.work, "elsewhere"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(h.work, "state/vm"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(h.work, "elsewhere"), filepath.Join(h.work, "state/vm/tpm")); err != nil {
		t.Fatal(err)
	}
	fails("a link", "", "tpm")
	if left, _ := os.ReadDir(filepath.Join(h.work, "elsewhere")); len(left) > 0 {
		t.Errorf("what a link points to was written to: %v", left)
	}
}

// TestTPMBackup: a TPM is exported from a VM that does not run, and given to one that has none;
// what is damaged or foreign is refused, and replaces nothing.
func TestTPMBackup(t *testing.T) {
	t.Parallel()
	qemus.EachTPM(t, tpmBackup)
}

func tpmBackup(t *testing.T, path string) {
	t.Parallel()
	h := newTPMHost(t, path, "")
	state := filepath.Join(h.work, "state/vm/tpm/tpm2-00.permall")
	refused := func(want string, args ...string) {
		t.Helper()
		out, err := h.attempt(h.command("vmlatch", append([]string{"tpm"}, args...)...))
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("tpm %v: %v: %s\nwant %q", args, err, out, want)
		}
	}
	refused("no persistent TPM", "vm")
	refused("made no TPM yet", "ca")
	h.run("vmlatch", "start", "vm.toml")
	h.shows("tpm", h.run("vmlatch", "tpm", "vm"), "not encrypted", "ek-p256.pem, SHA-256", "host: what it holds")
	refused("stop it first", "export", "vm", "backup")
	refused("stop it first", "reset", "vm")
	h.run("vmlatch", "stop", "vm", "--now")
	h.run("vmlatch", "tpm", "export", "vm", "backup")
	if info, err := os.Stat(filepath.Join(h.work, "backup")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the backup's file: %v, %v", info, err)
	}
	was := read(t, state)
	refused("reset NAME removes", "import", "vm", "backup")
	h.run("vmlatch", "tpm", "reset", "vm")
	h.hasState(false, "reset")
	h.run("vmlatch", "start", "vm.toml")
	h.run("vmlatch", "stop", "vm", "--now")
	if read(t, state) == was {
		t.Error("after a reset the TPM is the same")
	}
	h.run("vmlatch", "tpm", "reset", "vm")

	whole := read(t, filepath.Join(h.work, "backup"))
	damaged := []byte(whole)
	copy(damaged[600:], "damaged damaged damaged")
	for name, text := range map[string]string{
		"half": whole[:len(whole)/2], "damaged": string(damaged), "empty": "", "text": "no backup",
	} {
		h.write(name, text)
		refused(name+":", "import", "vm", name)
		h.hasState(false, "import of "+name)
	}
	foreign := strings.Replace(whole, "ek-rsa.pem", "../evil.pm", 1)
	h.write("foreign", foreign)
	refused("foreign", "import", "vm", "foreign")
	if _, err := os.Stat(filepath.Join(h.work, "state/vm/evil.pm")); err == nil {
		t.Error("a backup writes outside of the TPM's directory")
	}
	h.env = append(h.env, "PATH="+os.Getenv("PATH")) // the older swtpm reads what the newer has made
	h.run("vmlatch", "tpm", "import", "vm", "backup")
	if read(t, state) != was {
		t.Error("another state than the backup's")
	}
	h.run("vmlatch", "start", "vm.toml")
	h.run("vmlatch", "stop", "vm", "--now")
	h.run("vmlatch", "rm", "--tpm", "vm")
	h.noTPM("rm")
	waitNothing(t, h.work)
}

// TestEphemeralTPM: its state is gone with the VM.
func TestEphemeralTPM(t *testing.T) {
	t.Parallel()
	qemus.EachTPM(t, ephemeralTPM)
}

func ephemeralTPM(t *testing.T, path string) {
	t.Parallel()
	h := newTPMHost(t, path, "state = \"ephemeral\"\n")
	out, _ := h.attempt(h.command("vmlatch", "start", "vm.toml"))
	h.shows("start", out, "tpm-ephemeral-disk")
	if _, err := os.Stat(filepath.Join(h.work, "run/vm/tpm/tpm2-00.permall")); err != nil {
		t.Error(err)
	}
	h.run("vmlatch", "stop", "vm", "--now")
	h.run("vmlatch", "rm", "vm")
	h.noTPM("stop")
	waitNothing(t, h.work)
}

// TestTPMKilledStarts: a start that is killed at any moment leaves no swtpm running: one
// without a QEMU ends by itself, and the next command ends a QEMU without its launcher.
func TestTPMKilledStarts(t *testing.T) {
	t.Parallel()
	qemus.EachTPM(t, tpmKilledStarts)
}

func tpmKilledStarts(t *testing.T, path string) {
	t.Parallel()
	h := newTPMHost(t, path, "")
	const rounds = 40
	for i := range rounds {
		cmd := h.command("vmlatch", "start", "vm.toml")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(250)) * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		within(t, fmt.Sprintf("round %d: there is a swtpm without a QEMU", i), func() bool {
			// A QEMU that has been forked is seen as such once it is executed.
			return len(swtpms(h.work)) == 0 || len(processes(h.work+"/disk.img")) > 0
		})
		if out, err := h.attempt(h.command("vmlatch", "stop", "vm", "--now", "--ignore")); err != nil &&
			!strings.Contains(out, "killed") {
			t.Fatalf("round %d: %v: %s", i, err, out)
		}
		h.noTPM(fmt.Sprintf("round %d", i))
	}
	_, _ = h.attempt(h.command("vmlatch", "rm", "--tpm", "vm"))
	waitNothing(t, h.work)
}

// TestKillBetweenForks: a start that is killed as it makes a thread or a process, also between
// swtpm and QEMU, leaves neither, and the next start works.
func TestKillBetweenForks(t *testing.T) {
	t.Parallel()
	needProgram(t, "strace")
	if out, err := exec.Command("strace", "-o", "/dev/null", "true").CombinedOutput(); err != nil {
		t.Skipf("strace: %v: %s", err, out)
	}
	qemus.EachTPM(t, func(t *testing.T, path string) {
		h := newTPMHost(t, path, "")
		start := []string{"start", "vm.toml", "--hold"}
		h.run("vmlatch", start...) // makes the TPM
		h.run("vmlatch", "stop", "vm", "--now")
		kills := 0
		for _, call := range []string{"clone", "clone3"} {
			for n := 1; n < 100; n++ {
				kill := fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, n)
				traced := wrapped(h.command("vmlatch", start...), "strace", "-f", "-b", "execve", "-o", "/dev/null",
					"-e", "trace="+call, "-e", kill)
				_, err := h.attempt(traced)
				if err == nil {
					h.run("vmlatch", "stop", "vm", "--now")
					break
				}
				kills++
				h.run("vmlatch", "ps") // ends what was left
				within(t, "a process stays", func() bool {
					for _, left := range leftovers(h.work) {
						if strings.HasPrefix(left, "process") {
							return false
						}
					}
					return len(swtpms(h.work)) == 0
				})
				h.hasState(true, "killed")
				if t.Failed() {
					t.Fatalf("after a kill at %s, call %d", call, n)
				}
			}
		}
		if kills < 3 {
			t.Errorf("%d kills, want at least 3: two processes and a thread", kills)
		}
		h.run("vmlatch", start...)
		h.run("vmlatch", "stop", "vm", "--now")
		h.run("vmlatch", "rm", "--tpm", "vm")
		waitNothing(t, h.work)
	})
}
