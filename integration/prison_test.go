package integration

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/integration/escape"
	"github.com/vmlatch/vmlatch/launcher/confine"
)

// TestTakenOver: a QEMU that a guest has taken over reaches what is its own, and nothing else of
// its user's or the host's. The program that plays it has QEMU's descriptors and confinement, but
// not the system call filter that QEMU puts itself under.
func TestTakenOver(t *testing.T) {
	t.Parallel()
	if c := confine.Look("/"); c.Landlock < 6 || c.NoNamespaces != "" {
		t.Skipf("this kernel cannot confine it: Landlock %d, %s", c.Landlock, c.NoNamespaces)
	}
	for name, c := range map[string]struct {
		uid int
		ids bool // the host has set ids aside for VMs
	}{
		"a user": {65534, false}, "root": {0, false}, "root, ids for VMs": {0, true},
	} {
		t.Run(name, func(t *testing.T) {
			if (c.uid != 0 || c.ids) && os.Geteuid() != 0 {
				t.Skip("this test changes to the user nobody, which takes root")
			}
			takeOver(t, newHostOf(t, c.uid), c.ids)
		})
	}
}

// Ids that the test sets aside.
const firstID, countIDs = 1_900_000_000, 5

// startIn starts a VM, on a host that has set ids aside for VMs or not.
func startIn(t *testing.T, h *host, ids bool, spec string) {
	t.Helper()
	cmd := h.command("vmlatch", "start", spec)
	if ids {
		h.write("ids", fmt.Sprintf("vmlatch:%d:%d\n", firstID, countIDs))
		cmd = wrapped(cmd, "unshare", "--mount", "sh", "-c",
			`mount --bind ids /etc/subuid && mount --bind ids /etc/subgid && exec "$@"`, "sh")
	}
	if out, err := h.attempt(cmd); err != nil {
		t.Fatalf("%s: %v\n%s", spec, err, out)
	}
}

func takeOver(t *testing.T, h *host, ids bool) {
	qemu := filepath.Join(h.work, "prisoner")
	build := exec.Command("go", "build", "-o", qemu, "./prisoner")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	swtpm, err := exec.LookPath("swtpm")
	if err != nil {
		t.Skip("swtpm is not installed")
	}
	helpers := filepath.Join(h.work, "helpers")
	if err := os.Mkdir(helpers, 0o755); err != nil {
		t.Fatal(err)
	}
	h.copyProgram(swtpm, filepath.Join(helpers, "swtpm"))
	for _, name := range []string{"own.raw", "other.raw", "shared"} {
		h.write(name, "an image")
	}
	h.write("victim.toml", `
name = "victim"
memory = "32MiB"
[[disk]]
image = "other.raw"
format = "raw"
`)
	startIn(t, h, ids, "victim.toml")
	victim := inspected(t, h, "victim")

	// What this user has besides VMs.
	session := listenAs(t, h, filepath.Join(h.work, "bus.sock"))
	defer session.Close()
	loopback, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer loopback.Close()

	run, state := filepath.Join(h.work, "run"), filepath.Join(h.work, "state")
	forbidden := []string{
		"read:" + filepath.Join(run, "prison/record.json"), "write:" + filepath.Join(run, "prison/record.json"),
		"list:" + run, "remove:" + filepath.Join(run, "prison/vm.lock"), "write:" + filepath.Join(run, "prison/new"),
		"remove:" + filepath.Join(state, "prison/console.log"), "write:" + filepath.Join(state, "prison/qemu.log"),
		"read:" + filepath.Join(state, "prison/events.log"), "write:" + filepath.Join(state, "new"),
		"read:" + filepath.Join(run, "victim/record.json"), "unix:" + filepath.Join(run, "victim/qmp.sock"),
		"unix:" + filepath.Join(run, "victim/monitor.sock"), "unix:" + filepath.Join(run, "victim/console.sock"),
		"unix:" + filepath.Join(run, "prison/monitor.sock"),
		"read:" + filepath.Join(h.work, "other.raw"), "write:" + filepath.Join(h.work, "other.raw"),
		"read:" + filepath.Join(h.work, "victim.toml"), "list:" + h.work, "read:/etc/shadow", "read:/etc/passwd",
		"unix:" + filepath.Join(h.work, "bus.sock"), "tcp:" + loopback.Addr().String(), "udp:127.0.0.1:9",
		"unix:/run/dbus/system_bus_socket", "list:/run", "list:/tmp", "list:/home",
		"kill:" + strconv.Itoa(victim.Record.PID),
		"look:" + strconv.Itoa(victim.Record.PID),
		"kill:" + strconv.Itoa(os.Getpid()), "root:", "write:/proc/sys/kernel/core_pattern",
		"limit:" + strconv.Itoa(victim.Record.PID), "mode:/dev/full", "mode:" + filepath.Join(h.work, "shared"),
		"modes:", "lease:", "vsock:", "processes:", "key:vmlatch-test",
		"write:" + filepath.Join(h.work, "prisoner"), "write:/usr/escaped",
	}
	shared := filepath.Join(h.work, "shared")
	allowed := []string{"unlock:"}
	spec := fmt.Sprintf(`
name = "prison"
memory = "32MiB"
qemu = %q
[[disk]]
image = "own.raw"
format = "raw"
`, qemu)
	if !ids { // with a file that it opens itself, it would stay root's
		allowed = append(allowed, "read:"+shared, "write:"+shared)
		spec += fmt.Sprintf("[[object]]\nqom-type = \"rng-random\"\nid = \"own\"\nfilename = %q\n", shared)
	}
	if id, err := unix.AddKey("user", "vmlatch-test", []byte("x"), unix.KEY_SPEC_SESSION_KEYRING); err == nil {
		defer unix.KeyctlInt(unix.KEYCTL_INVALIDATE, id, 0, 0, 0)
	}
	spec += "[tpm]\n"
	h.write("prison.toml", spec)
	tpm := filepath.Join(state, "prison/tpm")
	tpmForbidden := append(slices.Clone(forbidden), "write:"+filepath.Join(h.work, "own.raw"), "mode:"+run)
	tpmForbidden = slices.DeleteFunc(tpmForbidden, func(a string) bool {
		return a == "modes:" || a == "processes:" // of its state; it has no namespace of processes
	})
	tpmAllowed := []string{"write:" + filepath.Join(tpm, "new")}
	h.env = append(h.env, "ATTEMPTS="+strings.Join(append(allowed, forbidden...), "\n"),
		"TPM_ATTEMPTS="+strings.Join(append(tpmAllowed, tpmForbidden...), "\n"), "PATH="+helpers+":"+os.Getenv("PATH"))
	startIn(t, h, ids, "prison.toml") // with the real swtpm, which makes the TPM
	h.run("vmlatch", "stop", "--now", "prison")
	h.copyProgram(qemu, filepath.Join(helpers, "swtpm"))
	startIn(t, h, ids, "prison.toml")
	compare(t, filepath.Join(state, "prison/console.log"), allowed, forbidden)
	compare(t, filepath.Join(tpm, "attempts"), tpmAllowed, tpmForbidden)

	// It has let go of its lock: it is there all the same, and is told of.
	got := inspected(t, h, "prison")
	if got.Status != "alive" || len(got.Trouble) == 0 || !strings.Contains(got.Trouble[0], "let go of its lock") {
		t.Errorf("%+v, want it alive, without its lock", got)
	}
	if out := h.run("vmlatch", "ps"); !strings.Contains(out, "prison") || !strings.Contains(out, "victim") {
		t.Errorf("ps does not show both:\n%s", out)
	}
	if c := got.Record.Confinement; c == nil || c.Refused == "" || len(c.Namespaces) != 5 {
		t.Errorf("confinement %+v", c)
	}
	c := got.Confined
	if c == nil || !c.NoNewPrivs || c.Capabilities || len(c.Namespaces) != 5 {
		t.Errorf("its process %+v", c)
	}
	if ids && (c.UID < firstID || c.UID >= firstID+countIDs || c.UID == victim.Confined.UID) {
		t.Errorf("its user is %d, the other's %d: want two of those that were set aside", c.UID, victim.Confined.UID)
	}
	c2 := got.Record.HelpersConfined["tpm"]
	if c2 == nil || c2.Refused == "" || len(c2.Namespaces) != 4 || ids && (c2.UID == 0 || c2.UID == c.UID) {
		t.Errorf("its TPM's confinement %+v", c2)
	}
	h.run("vmlatch", "stop", "--now", "prison")
	if out, err := h.attempt(h.command("vmlatch", "tpm", "export", "prison", "backup")); err == nil {
		t.Errorf("what a swtpm has laid in the place of its state is exported: %s", out)
	}
	if out, err := h.attempt(h.command("vmlatch", "plan", "prison.toml")); err == nil {
		t.Errorf("it is taken for a TPM's state: %s", out)
	}
	if out, err := h.attempt(h.command("vmlatch", "rm", "--tpm", "prison")); err == nil ||
		!strings.Contains(out, "is not a file of a TPM") {
		t.Errorf("what it has left is removed: %v: %s", err, out)
	}
	if err := os.RemoveAll(tpm); err != nil {
		t.Fatal(err)
	}
	if out := h.run("vmlatch", "ps"); strings.Contains(out, "prison") || !strings.Contains(out, "victim") {
		t.Errorf("after its end:\n%s", out)
	}
	h.run("vmlatch", "stop", "--now", "victim")
	h.clearEnded()
	waitNothing(t, h.work)
}

// compare compares how attempts ended, which a file says in the end, with how they must.
func compare(t *testing.T, file string, allowed, forbidden []string) {
	t.Helper()
	said := map[string]string{}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		b, _ := os.ReadFile(file)
		if lines := strings.Split(strings.TrimSpace(string(b)), "\n"); json.Unmarshal(
			[]byte(lines[len(lines)-1]), &said) == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("no attempts were made: %s", b)
		}
	}
	for _, a := range allowed {
		if said[a] != escape.Done {
			t.Errorf("%s: %s: %q, want it done", filepath.Base(file), a, said[a])
		}
	}
	for _, a := range forbidden {
		if said[a] == escape.Done || said[a] == "" {
			t.Errorf("%s: %s: %q, want it refused", filepath.Base(file), a, said[a])
		}
	}
}

// copyProgram puts a copy of a program in the place of another.
func (h *host) copyProgram(from, to string) {
	h.t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		_ = os.Remove(to)
		err = os.WriteFile(to, b, 0o755)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// inspection is what a test reads of a VM.
type inspection struct {
	Status  string
	Trouble []string
	Record  struct {
		PID             int
		Confinement     *wallsFound
		HelpersConfined map[string]*wallsFound `json:"helpers-confined"`
	}
	Confined *struct {
		UID          int
		NoNewPrivs   bool `json:"no-new-privileges"`
		Seccomp      bool
		Capabilities bool
		Namespaces   []string
	}
}

type wallsFound struct {
	UID        int
	Namespaces []string
	Refused    string
}

func inspected(t *testing.T, h *host, name string) (v inspection) {
	t.Helper()
	if err := json.Unmarshal([]byte(h.run("vmlatch", "inspect", "--json", name)), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// listenAs makes a socket of the machine's user.
func listenAs(t *testing.T, h *host, path string) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	h.own(path)
	return l
}

// TestAppArmor: a kernel with AppArmor keeps in what the package's profile says. It runs in a
// guest, for which the profile is compiled here.
func TestAppArmor(t *testing.T) {
	t.Parallel()
	c := needCoco(t)
	root := filepath.Join(top(), ".cache/root")
	parser := filepath.Join(root, "sbin/apparmor_parser")
	if _, err := os.Stat(parser); err != nil {
		parser = filepath.Join(root, "usr/sbin/apparmor_parser")
	}
	if _, err := os.Stat(parser); err != nil {
		t.Skip("the compiler of AppArmor's profiles cannot be had here")
	}
	h := newHost(t)
	base, policy := filepath.Join(root, "etc/apparmor.d"), filepath.Join(h.work, "vmlatch-qemu.bin")
	features := filepath.Join(base, "abi/3.0")
	compile := exec.Command(parser, "--skip-kernel-load", "--skip-read-cache", "--ofile", policy, "--base", base,
		"--policy-features", features, "--kernel-features", features,
		filepath.Join(top(), "cmd/vmlatch/apparmor/vmlatch-qemu"))
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	h.write("initrd", read(t, c.initrd))
	initrd := filepath.Join(h.work, "initrd")
	h.addToInitrd(initrd, "tests", testsFor(t, "confine", "apparmor"))
	h.addToInitrd(initrd, "vmlatch-qemu.bin", policy)
	h.passInGuest(c.kernel, initrd, "lsm=landlock,apparmor", "", "TestKernelAppArmor")
	waitNothing(t, h.work)
}
