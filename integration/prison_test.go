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
// not the system call filter that QEMU puts itself under. So it is with its TPM's swtpm.
func TestTakenOver(t *testing.T) {
	t.Parallel()
	needWalls(t)
	for name, c := range map[string]struct {
		uid int
		ids bool // the host has set ids aside for VMs
	}{
		"a user": {65534, false}, "root": {0, false}, "root with ids for VMs": {0, true},
	} {
		t.Run(name, func(t *testing.T) {
			if (c.uid != 0 || c.ids) && os.Geteuid() != 0 {
				t.Skip("this test changes to the user nobody, which takes root")
			}
			newHostOf(t, c.uid).prison(c.ids).takeOver(t)
		})
	}
}

func needWalls(t *testing.T) {
	t.Helper()
	if c := confine.Look("/"); c.Landlock < 6 || c.NoNamespaces != "" {
		t.Skipf("this kernel cannot confine it: Landlock %d, %s", c.Landlock, c.NoNamespaces)
	}
}

// takenOverUnits is TestTakenOver for VMs that are units.
func (m *machine) takenOverUnits(t *testing.T) {
	needWalls(t)
	m = m.of(t)
	m.prison().takeOver(t)
	if left := m.run("find", "/run/vmlatch", "-mindepth", "1", "-not", "-name", ".lock"); left != "" {
		t.Errorf("left: %s", left)
	}
}

// prison is a host on which VMs are taken over.
type prison struct {
	root             string         // leads to its files, as the test sees them
	work, run, state string         // its directories
	specs            string         // the directory of specs
	ids              *confine.Users // that it has set aside for VMs; nil for none
	own              func(file string)
	start            func(name string, env []string) // the VM of a spec
	vmlatch          func(args ...string) (string, error)
	ended            func(name string) // waits until nothing is left of a VM, or of all
}

func (h *host) prison(ids bool) *prison {
	p := &prison{
		work: h.work, run: filepath.Join(h.work, "run"), state: filepath.Join(h.work, "state"),
		specs: h.work, own: h.own,
	}
	if ids {
		p.ids = &confine.Users{First: 1_900_000_000, Count: 5}
	}
	p.start = func(name string, env []string) {
		h.t.Helper()
		cmd := h.command("vmlatch", "start", name+".toml")
		if ids {
			h.write("ids", fmt.Sprintf("vmlatch:%d:%d\n", p.ids.First, p.ids.Count))
			cmd = wrapped(cmd, "unshare", "--mount", "sh", "-c",
				`mount --bind ids /etc/subuid && mount --bind ids /etc/subgid && exec "$@"`, "sh")
		}
		cmd.Env = append(cmd.Env, env...)
		if out, err := h.attempt(cmd); err != nil {
			h.t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	p.vmlatch = func(args ...string) (string, error) { return h.attempt(h.command("vmlatch", args...)) }
	p.ended = func(name string) {
		if name == "" {
			h.clearEnded()
			waitNothing(h.t, h.work)
		}
	}
	return p
}

// prison is a machine whose VMs are units.
func (m *machine) prison() *prison {
	p := &prison{
		root: fmt.Sprintf("/proc/%d/root", m.init), work: "/srv/prison", run: "/run/vmlatch",
		state: "/var/lib/vmlatch", specs: "/etc/vmlatch/vms", own: func(string) {},
	}
	var err error
	if p.ids, err = confine.ReadUsers(p.root); err != nil { // the package's
		m.t.Fatal(err)
	}
	m.run("mkdir", p.work)
	p.start = func(name string, env []string) {
		m.t.Helper()
		dropIn := quickStop + "ReadWritePaths=" + p.work + "\n"
		for _, e := range env {
			dropIn += "Environment=\"" + strings.ReplaceAll(e, "\n", "\\n") + "\"\n"
		}
		m.write("/etc/systemd/system/vmlatch@"+name+".service.d/test.conf", dropIn)
		m.run("systemctl", "daemon-reload")
		m.run("systemctl", "start", "vmlatch@"+name)
	}
	p.vmlatch = func(args ...string) (string, error) { return m.try("vmlatch", args...) }
	p.ended = func(name string) {
		if name != "" {
			m.ended("vmlatch@" + name)
		}
	}
	return p
}

// file is where the test finds a file of the host.
func (p *prison) file(name string) string { return p.root + name }

func (p *prison) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(p.file(name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p.own(p.file(name))
}

func (p *prison) done(t *testing.T, args ...string) string {
	t.Helper()
	out, err := p.vmlatch(args...)
	if err != nil {
		t.Fatalf("vmlatch %v: %v\n%s", args, err, out)
	}
	return out
}

// fails runs a command that must fail, and say why.
func (p *prison) fails(t *testing.T, why string, args ...string) {
	t.Helper()
	if out, err := p.vmlatch(args...); err == nil || !strings.Contains(out, why) {
		t.Errorf("vmlatch %v: %v, want it refused, with %q: %s", args, err, why, out)
	}
}

// in is a file among the host's own.
func (p *prison) in(name string) string { return filepath.Join(p.work, name) }

func (p *prison) takeOver(t *testing.T) {
	qemu := filepath.Join(t.TempDir(), "prisoner")
	build := exec.Command("go", "build", "-o", qemu, "./prisoner")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	swtpm, err := exec.LookPath("swtpm")
	if err != nil {
		t.Skip("swtpm is not installed")
	}
	if err := os.Mkdir(p.file(p.in("helpers")), 0o755); err != nil {
		t.Fatal(err)
	}
	copyProgram(t, swtpm, p.file(p.in("helpers/swtpm")))
	if err := os.Mkdir(p.file(p.in("programs")), 0o755); err != nil {
		t.Fatal(err)
	}
	copyProgram(t, qemu, p.file(p.in("programs/prisoner")))
	copyProgram(t, "/bin/true", p.file(p.in("other")))
	for _, name := range []string{"own.raw", "other.raw", "shared"} {
		p.write(t, p.in(name), "an image")
	}
	p.write(t, filepath.Join(p.specs, "victim.toml"), fmt.Sprintf(`
memory = "32MiB"
accel = "tcg"
[[disk]]
image = %q
format = "raw"
`, p.in("other.raw")))
	p.start("victim", nil)
	victim := p.inspect(t, "victim")

	// What this user has besides VMs.
	session, err := net.Listen("unix", p.file(p.in("bus.sock")))
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	p.own(p.file(p.in("bus.sock")))
	loopback, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer loopback.Close()
	abstract, err := net.Listen("unix", "@vmlatch-test")
	if err == nil { // else the same test of another user has it
		defer abstract.Close()
	}
	if id, err := unix.AddKey("user", "vmlatch-test", []byte("x"), unix.KEY_SPEC_SESSION_KEYRING); err == nil {
		defer unix.KeyctlInt(unix.KEYCTL_INVALIDATE, id, 0, 0, 0)
	}

	forbidden := p.forbidden(victim.Record.PID, loopback.Addr().String())
	allowed := []string{"unlock:", "own:an image"}
	spec := fmt.Sprintf(`
memory = "32MiB"
accel = "tcg"
qemu = %q
[[disk]]
image = %q
format = "raw"
`, p.in("programs/prisoner"), p.in("own.raw"))
	if p.ids == nil { // with a file that it opens itself, it would stay root's
		allowed = append(allowed, "read:"+p.in("shared"), "write:"+p.in("shared"))
		spec += fmt.Sprintf("[[object]]\nqom-type = \"rng-random\"\nid = \"own\"\nfilename = %q\n", p.in("shared"))
	}
	p.write(t, filepath.Join(p.specs, "prison.toml"), spec+"[tpm]\n")
	tpm := filepath.Join(p.state, "prison/tpm")
	tpmForbidden := append(slices.Clone(forbidden), "write:"+p.in("own.raw"), "mode:"+p.run, "own:an image")
	tpmForbidden = slices.DeleteFunc(tpmForbidden, func(a string) bool {
		return a == "modes:" || a == "processes:" // of its state; it has no namespace of processes
	})
	tpmAllowed := []string{"unlock:", "stay:", "shut:", "write:" + filepath.Join(tpm, "new")}
	env := []string{
		"QEMU_ATTEMPTS=" + strings.Join(append(allowed, forbidden...), "\n"),
		"QEMU_TPM_ATTEMPTS=" + strings.Join(append(tpmAllowed, tpmForbidden...), "\n"),
		"PATH=" + p.in("helpers") + ":/usr/sbin:/usr/bin:/sbin:/bin",
	}
	p.start("prison", env) // with the real swtpm, which makes the TPM
	p.done(t, "stop", "--now", "prison")
	p.ended("prison")
	copyProgram(t, qemu, p.file(p.in("helpers/swtpm")))
	p.start("prison", env)
	compare(t, p.file(filepath.Join(p.state, "prison/console.log")), allowed, forbidden)
	compare(t, p.file(filepath.Join(tpm, "attempts")), tpmAllowed, tpmForbidden)
	p.confined(t, victim)

	p.done(t, "stop", "--now", "prison")
	p.ended("prison")
	if left, err := exec.Command("pgrep", "-f", p.in("helpers/swtpm")).Output(); err == nil {
		t.Errorf("its TPM lives on: %s", left)
	}
	// What a swtpm has laid in the place of its state is not taken for that, and not removed.
	p.fails(t, "", "tpm", "export", "prison", p.in("backup"))
	p.fails(t, "", "plan", filepath.Join(p.specs, "prison.toml"))
	p.fails(t, "is not a file of a TPM", "rm", "--tpm", "prison")
	if err := os.RemoveAll(p.file(tpm)); err != nil {
		t.Fatal(err)
	}
	if out := p.done(t, "ps"); strings.Contains(out, "prison") || !strings.Contains(out, "victim") {
		t.Errorf("after its end:\n%s", out)
	}
	p.done(t, "stop", "--now", "victim")
	p.ended("victim")
	p.ended("")
}

// forbidden are attempts that must fail, of a VM named prison next to one named victim, with
// its process; a service listens at a loopback address.
func (p *prison) forbidden(victim int, loopback string) []string {
	run, state := p.run, p.state
	return []string{
		"read:" + filepath.Join(run, "prison/record.json"), "write:" + filepath.Join(run, "prison/record.json"),
		"list:" + run, "remove:" + filepath.Join(run, "prison/vm.lock"), "write:" + filepath.Join(run, "prison/new"),
		"remove:" + filepath.Join(state, "prison/console.log"), "write:" + filepath.Join(state, "prison/qemu.log"),
		"read:" + filepath.Join(state, "prison/events.log"), "write:" + filepath.Join(state, "new"),
		"read:" + filepath.Join(run, "victim/record.json"), "unix:" + filepath.Join(run, "victim/qmp.sock"),
		"unix:" + filepath.Join(run, "victim/monitor.sock"), "unix:" + filepath.Join(run, "victim/console.sock"),
		"unix:" + filepath.Join(run, "prison/monitor.sock"),
		"read:" + p.in("other.raw"), "write:" + p.in("other.raw"),
		"read:" + filepath.Join(p.specs, "victim.toml"), "list:" + p.work, "read:/etc/shadow", "read:/etc/passwd",
		"unix:" + p.in("bus.sock"), "tcp:" + loopback, "udp:127.0.0.1:9",
		"unix:/run/dbus/system_bus_socket", "list:/run", "list:/tmp", "list:/home",
		"kill:" + strconv.Itoa(victim), "look:" + strconv.Itoa(victim),
		"kill:" + strconv.Itoa(os.Getpid()), "root:", "write:/proc/sys/kernel/core_pattern",
		"limit:" + strconv.Itoa(victim), "mode:/dev/full", "mode:" + p.in("shared"),
		"modes:", "lease:", "vsock:", "processes:", "key:vmlatch-test",
		"ring:", "traceme:", "memory:", "pidfd:", "core:", "env:VMLATCH_RUN_DIR", "env:HOME",
		"abstract:@vmlatch-test", "run:" + p.in("other"),
		"write:" + p.in("programs/prisoner"), "write:/usr/escaped",
	}
}

// confined requires that the VM prison, which has let go of its lock, is there all the same, is
// told of, and has its walls.
func (p *prison) confined(t *testing.T, victim inspection) {
	t.Helper()
	got := p.inspect(t, "prison")
	if got.Status != "alive" || len(got.Trouble) == 0 || !strings.Contains(got.Trouble[0], "let go of its lock") {
		t.Errorf("%+v, want it alive, without its lock", got)
	}
	if out := p.done(t, "ps"); !strings.Contains(out, "prison") || !strings.Contains(out, "victim") {
		t.Errorf("ps does not show both:\n%s", out)
	}
	if c := got.Record.Confinement; c == nil || c.Refused == "" || len(c.Namespaces) != 5 {
		t.Errorf("confinement %+v", c)
	}
	c := got.Confined
	if c == nil || !c.NoNewPrivs || c.Capabilities || len(c.Namespaces) != 5 {
		t.Errorf("its process %+v", c)
	}
	owns := func(uid int) bool { return uid >= p.ids.First && uid < p.ids.First+p.ids.Count }
	if p.ids != nil && (!owns(c.UID) || c.UID == victim.Confined.UID) {
		t.Errorf("its user is %d, the other's %d: want two of those that were set aside", c.UID, victim.Confined.UID)
	}
	c2 := got.Record.HelpersConfined["tpm"]
	if c2 == nil || c2.Refused == "" || len(c2.Namespaces) != 4 || p.ids != nil && (!owns(c2.UID) || c2.UID == c.UID) {
		t.Errorf("its TPM's confinement %+v", c2)
	}
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
func copyProgram(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		_ = os.Remove(to)
		err = os.WriteFile(to, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
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

func (p *prison) inspect(t *testing.T, name string) (v inspection) {
	t.Helper()
	if err := json.Unmarshal([]byte(p.done(t, "inspect", "--json", name)), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestAppArmor: a kernel with AppArmor keeps in what the package's profile says. It runs in a
// guest.
func TestAppArmor(t *testing.T) {
	t.Parallel()
	c := needCoco(t)
	h := newHost(t)
	policy := h.appArmorPolicy()
	h.write("initrd", read(t, c.initrd))
	initrd := filepath.Join(h.work, "initrd")
	h.addToInitrd(initrd, "tests", testsFor(t, "launcher/confine", "apparmor"))
	h.addToInitrd(initrd, "vmlatch-qemu.bin", policy)
	h.passInGuest(c.kernel, initrd, "lsm=landlock,apparmor", "", "TestKernelAppArmor")
	waitNothing(t, h.work)
}

// appArmorPolicy is the package's profile, compiled for the kernels of test guests.
func (h *host) appArmorPolicy() string {
	h.t.Helper()
	root := filepath.Join(top(), ".cache/root")
	parser := filepath.Join(root, "sbin/apparmor_parser")
	if _, err := os.Stat(parser); err != nil {
		parser = filepath.Join(root, "usr/sbin/apparmor_parser")
	}
	if _, err := os.Stat(parser); err != nil {
		h.t.Skip("the registry lacks the compiler of AppArmor's profiles")
	}
	base, policy := filepath.Join(root, "etc/apparmor.d"), filepath.Join(h.work, "vmlatch-qemu.bin")
	features := filepath.Join(base, "abi/3.0")
	compile := exec.Command(parser, "--skip-kernel-load", "--skip-read-cache", "--ofile", policy, "--base", base,
		"--policy-features", features, "--kernel-features", features,
		filepath.Join(top(), "cmd/vmlatch/apparmor/vmlatch-qemu"))
	if out, err := compile.CombinedOutput(); err != nil {
		h.t.Fatalf("%v: %s", err, out)
	}
	return policy
}
