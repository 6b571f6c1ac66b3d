package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/integration/qemus"
	"github.com/vmlatch/vmlatch/launcher/confine"
)

// machine is a systemd that runs as PID 1 of its own namespaces.
type machine struct {
	t    *testing.T
	init int // its PID outside the namespaces
	log  string
}

// boot starts systemd on a copy of this system, with the packages installed.
func boot(t *testing.T) *machine {
	t.Helper()
	needGuest(t)
	needProgram(t, "unshare", "nsenter", "systemctl")
	if os.Geteuid() != 0 {
		t.Skip("a systemd in namespaces takes root")
	}
	debs := packages(t)
	work, group := t.TempDir(), ownGroup(t)
	m := &machine{t: t, log: filepath.Join(work, "log")}
	log, err := os.Create(m.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	root := filepath.Join(work, "mnt")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	// The shell enters the control group, so that systemd's groups are below it.
	const enter = `echo $$ > "$0/cgroup.procs" &&
		exec unshare --mount --pid --fork --kill-child --cgroup --uts --ipc "$@"`
	cmd := exec.Command("sh", "-c", enter,
		group, filepath.Join(top(), "integration/testdata/systemd/boot"), root, top(), binaries)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		for end := time.Now().Add(10 * time.Second); removeGroups(group) != nil && time.Now().Before(end); {
			time.Sleep(50 * time.Millisecond)
		}
		if t.Failed() {
			b, _ := os.ReadFile(m.log)
			t.Logf("systemd said:\n%s", b)
		}
	})
	within(t, "systemd does not come up", func() bool {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
		if m.init, _ = strconv.Atoi(strings.TrimSpace(string(b))); m.init == 0 {
			log, _ := os.ReadFile(m.log)
			if bytes.Contains(log, []byte("mount:")) || bytes.Contains(log, []byte("unshare:")) {
				t.Skipf("no namespaces for a systemd here: %s", log)
			}
			return false
		}
		out, err := m.try("systemctl", "is-active", "multi-user.target")
		return err == nil && strings.TrimSpace(out) == "active"
	})
	for _, deb := range debs {
		if !strings.HasPrefix(filepath.Base(deb), "latchguest") { // which is for guests
			m.run("dpkg", "--install", "--no-triggers", deb)
		}
	}
	m.run("sh", "-c", "ln -s /lib/systemd/system/vmlatch* /lib/systemd/system/latchkey* /run/units/ &&"+
		" systemctl daemon-reload")
	return m
}

// ownGroup makes a control group, or skips.
func ownGroup(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Skip(err)
	}
	for line := range strings.Lines(string(b)) {
		mount, fs, _ := strings.Cut(line, " - ")
		if f := strings.Fields(mount); strings.HasPrefix(fs, "cgroup2 ") && len(f) > 4 {
			group := filepath.Join(f[4], fmt.Sprintf("vmlatch-test-%d", os.Getpid()))
			if err := os.Mkdir(group, 0o755); err != nil {
				t.Skipf("no control group for a systemd here: %v", err)
			}
			return group
		}
	}
	t.Skip("no control groups of version 2 here")
	return ""
}

// removeGroups removes a control group and all groups below it.
func removeGroups(group string) error {
	below, _ := filepath.Glob(group + "/*/cgroup.procs")
	for _, g := range below {
		if err := removeGroups(filepath.Dir(g)); err != nil {
			return err
		}
	}
	return os.Remove(group)
}

// of is the machine for a test within another.
func (m *machine) of(t *testing.T) *machine {
	c := *m
	c.t = t
	return &c
}

func (m *machine) try(name string, args ...string) (string, error) {
	enter := []string{"-t", strconv.Itoa(m.init), "-m", "-p", "-u", "-i", "-C", "-r", "-w", name}
	cmd := exec.Command("nsenter", append(enter, args...)...)
	cmd.Env = []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root",
		"DEBIAN_FRONTEND=noninteractive",
		"GORACE=" + raceOptions,
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (m *machine) run(name string, args ...string) string {
	m.t.Helper()
	out, err := m.try(name, args...)
	if err != nil {
		log, _ := m.try("sh", "-c",
			"cat /run/vm.log; systemctl --no-pager --failed; systemctl --no-pager status 'vmlatch*'")
		m.t.Fatalf("%s %s: %v\n%s\n%s", name, strings.Join(args, " "), err, out, log)
	}
	return out
}

func (m *machine) write(file, text string) {
	m.t.Helper()
	m.run("sh", "-c", `mkdir -p "$(dirname "$1")" && printf %s "$2" > "$1"`, "sh", file, text)
}

// show returns a unit's property.
func (m *machine) show(unit, property string) string {
	m.t.Helper()
	return strings.TrimSpace(m.run("systemctl", "show", "--value", "-p", property, unit))
}

const plainSpec = "memory = \"32MiB\"\naccel = \"tcg\"\n"

// logs sends the output of the unit's programs to a file: there is no journal.
const logs = `[Service]
StandardOutput=append:/run/vm.log
StandardError=append:/run/vm.log
`

// quickStop is for guests without an operating system, which ignore the power button.
const quickStop = logs + `ExecStop=
ExecStop=-/usr/bin/vmlatch stop --ignore --timeout 1s %i
`

// helpersOfUnits starts a VM with a TPM and a network by passt: each has another user.
func (m *machine) helpersOfUnits(t *testing.T) {
	needProgram(t, "passt", "swtpm")
	m = m.of(t)
	m.write("/etc/vmlatch/vms/more.toml", plainSpec+"[tpm]\n[[network]]\nmode = \"passt\"\n")
	m.run("systemctl", "start", "vmlatch@more")
	pids := strings.Fields(m.run("cat", "/sys/fs/cgroup"+m.show("vmlatch@more", "ControlGroup")+"/cgroup.procs"))
	users := map[string]string{}
	for _, pid := range pids {
		who := strings.Fields(m.run("ps", "-o", "comm=,uid=", "-p", pid))
		if len(who) == 2 {
			users[who[1]] = who[0]
		}
	}
	if len(pids) != 3 || len(users) != 3 || users["0"] != "" {
		m.t.Errorf("processes %v by users %v, want QEMU, swtpm and passt, none root's own", pids, users)
	}
	m.run("systemctl", "stop", "vmlatch@more")
	m.run("systemctl", "start", "vmlatch@more") // another user has the TPM now
	m.run("systemctl", "stop", "vmlatch@more")
	m.run("vmlatch", "rm", "--tpm", "more")
}

// sharesOfUnits starts a VM that shares a directory, for which virtiofsd needs more rights than the
// unit has.
func (m *machine) sharesOfUnits(t *testing.T) {
	c := needCoco(t)
	m = m.of(t)
	if _, err := os.Stat("/usr/lib/qemu/virtiofsd"); err != nil {
		t.Skip(err)
	}
	m.run("mkdir", "/srv/open")
	m.write("/srv/open/hello", "from the host\n")
	m.write("/etc/vmlatch/vms/share.toml", fmt.Sprintf("qemu = %q\naccel = \"tcg\"\n"+
		"[kernel]\nimage = %q\ninitrd = %q\n"+
		"cmdline = \"console=ttyS0 quiet panic=-1 no_timer_check vmlatch.mount=one\"\n"+
		"[[share]]\npath = \"/srv/open\"\ntag = \"one\"\n",
		qemus.Newest(t), c.kernel, filepath.Join(top(), ".cache/guest/initrd.img")))
	const dropIn = "/etc/systemd/system/vmlatch@share.service.d/share.conf"
	sees := "[Service]\nReadWritePaths=/srv/open\nBindReadOnlyPaths=" + top() + "\n" // which may be in /tmp
	m.write(dropIn, sees)
	m.run("systemctl", "daemon-reload")
	if out, err := m.try("systemctl", "start", "vmlatch@share"); err == nil {
		t.Errorf("it starts: %s", out)
	}
	if log := m.run("cat", "/run/vm.log"); !strings.Contains(log, "(CAP_SYS_ADMIN CAP_FSETID CAP_MKNOD CAP_SETFCAP)") {
		t.Errorf("the log does not say why: %s", log)
	}
	m.write(dropIn, sees+"CapabilityBoundingSet=CAP_SYS_ADMIN CAP_FSETID CAP_MKNOD CAP_SETFCAP\n")
	m.run("systemctl", "daemon-reload")
	m.run("systemctl", "start", "vmlatch@share")
	m.ended("vmlatch@share")
	if got := m.run("cat", "/srv/open/answer"); got != "from the host\n" {
		t.Errorf("the guest has written %q", got)
	}
}

// TestSystemd: a VM is a unit. QEMU is its main process; its end is the unit's end;
// root's commands see it; what systemd stops, restarts or refuses leaves nothing.
func TestSystemd(t *testing.T) {
	t.Parallel()
	m := boot(t)
	m.write("/etc/systemd/system/vmlatch@.service.d/test.conf", quickStop)
	m.write("/etc/vmlatch/vms/web.toml", plainSpec)
	m.run("systemctl", "daemon-reload")

	m.run("systemctl", "start", "vmlatch@web")
	first := m.show("vmlatch@web", "MainPID")
	who := strings.Fields(m.run("ps", "-o", "uid=,comm=", "-p", first))
	if len(who) != 2 || !strings.HasPrefix(who[1], "qemu-system") {
		t.Fatalf("the main process is %v, want QEMU", who)
	}
	if uid, _ := strconv.Atoi(who[0]); uid < 1_000_000 { // what the package has set aside
		t.Errorf("QEMU's user is %s, want one of its own", who[0])
	}
	if c := confine.Look("/"); c.NoNamespaces == "" && c.Landlock >= 6 {
		if out := m.run("vmlatch", "inspect", "web"); !strings.Contains(out, "by Landlock") ||
			!strings.Contains(out, "of its own: user, mount, ipc, pid, network") ||
			strings.Contains(out, "not confined") {
			t.Errorf("the unit's rules keep QEMU from being confined:\n%s", out)
		}
	}
	if s := m.show("vmlatch@web", "StatusText"); s != "web: running" {
		t.Errorf("status %q", s)
	}
	if out := m.run("vmlatch", "ps"); !strings.Contains(out, "web ") || !strings.Contains(out, "running") {
		t.Errorf("root's ps: %s", out)
	}
	group := m.show("vmlatch@web", "ControlGroup")
	if procs := m.run("cat", "/sys/fs/cgroup"+group+"/cgroup.procs"); len(strings.Fields(procs)) != 1 {
		t.Errorf("processes besides QEMU: %s", procs)
	}
	// The timer's service keeps the logs of VMs within their bound that no command looks at.
	const log = "/var/lib/vmlatch/web/console.log"
	m.write("/etc/vmlatch/host.toml", "[logs]\nmax = \"64KiB\"\n")
	m.run("sh", "-c", "yes | head -c 1000000 >> "+log+" && echo last >> "+log)
	m.run("systemctl", "start", "vmlatch-logs")
	blocks, err := strconv.Atoi(strings.TrimSpace(m.run("stat", "-c", "%b", log))) // its size stays on a tmpfs
	if err != nil || blocks*512 > 2*64<<10 {
		t.Errorf("the log takes %d blocks, %v", blocks, err)
	}
	if out := m.run("tail", "-n", "1", log); out != "last\n" {
		t.Errorf("the log's last line is %q", out)
	}
	t.Run("helpers", m.helpersOfUnits)
	t.Run("shares", m.sharesOfUnits)
	if env := m.run("cat", "/proc/"+first+"/environ"); strings.Contains(env, "NOTIFY_SOCKET") {
		t.Error("QEMU has the service manager's socket")
	}
	out, err := m.try("vmlatch", "restart", "web")
	if err == nil || !strings.Contains(out, "systemctl restart vmlatch@web.service") {
		t.Errorf("restart: %v, want a hint to systemctl: %s", err, out)
	}

	m.run("kill", "-9", first)
	within(t, "the unit is not started again", func() bool {
		pid := m.show("vmlatch@web", "MainPID")
		return pid != "0" && pid != first && m.show("vmlatch@web", "ActiveState") == "active"
	})
	for _, how := range [][]string{
		{"systemctl", "stop", "vmlatch@web"},
		{"vmlatch", "stop", "web", "--timeout", "1s"},
		{"vmlatch", "stop", "web", "--now"},
		{"vmlatch", "stop", "--all", "--now"},
	} {
		if m.show("vmlatch@web", "ActiveState") != "active" {
			m.run("systemctl", "start", "vmlatch@web")
		}
		out, err := m.try(how[0], how[1:]...) // the guest ignores the power button, so it is killed
		if pulled := slices.Contains(how, "--timeout"); (err != nil) != pulled {
			t.Errorf("%v: %v, want a failure %t: %s", how, err, pulled, out)
		}
		m.ended("vmlatch@web")
		time.Sleep(2500 * time.Millisecond) // RestartSec
		if s := m.show("vmlatch@web", "ActiveState"); s != "inactive" {
			t.Errorf("after %v it is %s, want inactive", how, s)
		}
	}
	if out := m.run("vmlatch", "ps", "--all"); !strings.Contains(out, "stopped") {
		t.Errorf("ps after stop: %s", out)
	}
	if left := m.run("find", "/run/vmlatch", "-mindepth", "1", "-not", "-name", ".lock"); left != "" {
		t.Errorf("left: %s", left)
	}

	// A VM that was started by hand does not belong to the unit, which does not wait for it.
	m.run("vmlatch", "start", "/etc/vmlatch/vms/web.toml")
	began := time.Now()
	if out, err := m.try("systemctl", "start", "vmlatch@web"); err == nil {
		t.Errorf("a name is used twice: %s", out)
	}
	m.run("systemctl", "stop", "vmlatch@web")
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("that took %v", took)
	}
	if out := m.run("vmlatch", "ps"); !strings.Contains(out, "running") {
		t.Errorf("the VM that was started by hand is gone: %s", out)
	}
	m.run("vmlatch", "stop", "web", "--now")

	m.write("/etc/vmlatch/vms/bad.toml", "memry = 1\n")
	if out, err := m.try("systemctl", "start", "vmlatch@bad"); err == nil {
		t.Errorf("a bad spec starts: %s", out)
	}
	if n := m.show("vmlatch@bad", "NRestarts"); n != "0" {
		t.Errorf("a spec that is refused is retried %s times, want 0", n)
	}
	if log := m.run("cat", "/run/vm.log"); !strings.Contains(log, `did you mean "memory"?`) {
		t.Errorf("log: %s", log)
	}
	t.Run("taken over", m.takenOverUnits)
}

// ended waits until a unit has ended, and requires that it ended successfully.
func (m *machine) ended(unit string) {
	m.t.Helper()
	for end := time.Now().Add(90 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		switch s := m.show(unit, "ActiveState"); {
		case s == "inactive" && m.show(unit, "Result") == "success":
			return
		case s == "failed" || s == "inactive" || time.Now().After(end):
			m.t.Fatalf("%s is %s, result %s: %s", unit, s, m.show(unit, "Result"), m.run("cat", "/run/vm.log"))
		}
	}
}

// TestSystemdGuests: when a guest powers off, its unit ends successfully. A guest that
// waits for its owner is released by a packet that is passed as a credential.
func TestSystemdGuests(t *testing.T) {
	m := boot(t)
	t.Run("broker", func(t *testing.T) { brokerUnit(t, m.of(t)) })
	m.write("/etc/systemd/system/vmlatch@.service.d/test.conf", quickStop)
	const guest = "/srv/guest" // the VMs' user may have no access to this checkout
	m.run("mkdir", guest)
	for _, f := range guestFiles {
		m.run("install", "-m", "644", filepath.Join(top(), ".cache/guest", f), guest)
	}
	m.write("/etc/vmlatch/vms/linux.toml", fmt.Sprintf(`memory = "256MiB"
accel = "tcg"
[kernel]
image = "%s/vmlinuz"
initrd = "%[1]s/initrd.img"
cmdline = "console=ttyS0 quiet"
[tpm]
key = "credential:tpm-key"
`, guest))
	m.run(
		"sh",
		"-c",
		"umask 077; mkdir -p /etc/credstore; head -c 32 /dev/urandom > /etc/credstore/vmlatch.linux.tpm-key",
	)
	m.run("systemctl", "daemon-reload")
	m.run("systemctl", "start", "vmlatch@linux")
	m.ended("vmlatch@linux")
	if out := m.run("vmlatch", "tpm", "linux"); !strings.Contains(out, "/tpm, encrypted") {
		t.Errorf("tpm: %s", out)
	}
	if left, err := m.try("pgrep", "-x", "swtpm"); err == nil {
		t.Errorf("swtpm is left behind: %s", left)
	}

	// systemd makes the scope of a VM that has limits.
	t.Run("scope", func(t *testing.T) {
		needProgram(t, "dbus-daemon", "busctl")
		m.run("install", "-m", "755", testsFor(t, "launcher/cgroup", "cgroups"), "/usr/bin/cgroup.test")
		m.run(
			"sh",
			"-c",
			"cp /lib/systemd/system/dbus.* /run/units/; systemctl daemon-reload; systemctl start dbus.socket dbus",
		)
		out, err := m.try("/usr/bin/cgroup.test", "-test.run=TestScope", "-test.v")
		if err != nil || !strings.Contains(out, "--- PASS: TestScope") {
			t.Errorf("%v: %s", err, out)
		}
	})

	// The emulator traces QEMU, which the unit's filter of system calls forbids.
	m.write("/etc/systemd/system/vmlatch@sev.service.d/emulate.conf", `[Service]
Environment="VMLATCH_OPTIONS=--emulate --hold" SWTEE_PLATFORM=/var/lib/vmlatch/.chip SWTEE_ACCEL=tcg
SystemCallFilter=
SystemCallFilter=@system-service seccomp @debug
`)
	m.write("/etc/vmlatch/vms/sev.toml", fmt.Sprintf(`memory = "256MiB"
[firmware]
image = "%s/OVMF.amdsev.fd"
[kernel]
image   = "%[1]s/vmlinuz"
initrd  = "%[1]s/initrd.img"
cmdline = "console=ttyS0 quiet"
[confidential]
technology = "sev"
owner-cert = "credential:owner-cert"
session    = "credential:session"
`, guest))
	m.run("systemctl", "daemon-reload")
	m.run("sh", "-c", `set -e; umask 077; mkdir -p /root/owner /etc/credstore; cd /root/owner
		export SWTEE_PLATFORM=/var/lib/vmlatch/.chip
		SWTEE_ACCEL=tcg vmlatch platform --emulate > platform.json
		swtee root > root.pem
		swtee cek > cek.cert
		latchkey session --platform platform.json --cek cek.cert --trust-root root.pem --out .
		cp guest.godh /etc/credstore/vmlatch.sev.owner-cert; cp guest.session /etc/credstore/vmlatch.sev.session
		systemctl start vmlatch@sev
		vmlatch measure sev > measurement.json
		echo secret > disk
		latchkey secret --owner guest.owner --measurement measurement.json \
			--firmware `+guest+`/OVMF.amdsev.fd \
			--kernel `+guest+`/vmlinuz --initrd `+guest+`/initrd.img --cmdline "console=ttyS0 quiet" \
			--entry disk=disk --out /etc/credstore/vmlatch.sev.packet
		systemctl start vmlatch-release@sev`)
	if out := m.run("vmlatch", "ps", "--all"); !strings.Contains(out, "open: verified") {
		t.Errorf("ps: %s", out)
	}
	m.run("systemctl", "stop", "vmlatch@sev")
	m.run("systemctl", "start", "vmlatch@sev") // held again
	// A user who may not write to the slots' directory can count the slots.
	m.write("/etc/systemd/system/vmlatch-nfd.service.d/test.conf", logs)
	m.run("mkdir", "-p", "/etc/kubernetes/node-feature-discovery/features.d")
	m.run("systemctl", "daemon-reload")
	m.run("systemctl", "start", "vmlatch-nfd")
	features := m.run("cat", "/etc/kubernetes/node-feature-discovery/features.d/vmlatch")
	if !strings.Contains(features, "expiry-time") {
		t.Errorf("features: %s", features)
	}
	m.run("systemctl", "stop", "vmlatch@sev")
	m.ended("vmlatch@sev")
	// Removal ends the VMs that are running, and keeps files that may be disks.
	m.run("systemctl", "start", "vmlatch@sev")
	m.write("/var/lib/vmlatch/disk.raw", "data")
	m.run("grep", "-q", "^vmlatch:[0-9]*:4096$", "/etc/subuid", "/etc/subgid")
	m.run("test", "!", "-e", "/etc/apparmor.d/vmlatch") // this AppArmor knows no such rules
	m.run("mkdir", "-p", "/etc/apparmor.d/abi")
	m.write("/etc/apparmor.d/abi/4.0", "")
	m.run("dpkg-reconfigure", "vmlatch")
	m.run("cmp", "/usr/share/vmlatch/apparmor/vmlatch", "/etc/apparmor.d/vmlatch")
	m.write("/etc/apparmor.d/abi/3.0", "")
	m.run("dpkg-reconfigure", "vmlatch")
	m.run("cmp", "/usr/share/vmlatch/apparmor/vmlatch-qemu", "/etc/apparmor.d/vmlatch-qemu")
	m.run("dpkg", "--purge", "--no-triggers", "vmlatch")
	m.run("test", "!", "-e", "/etc/apparmor.d/vmlatch", "-a", "!", "-e", "/etc/apparmor.d/vmlatch-qemu")
	if left, err := m.try("grep", "^vmlatch:", "/etc/subuid", "/etc/subgid"); err == nil {
		t.Errorf("ids after removal: %s", left)
	}
	if left, _ := m.try("pgrep", "-f", "qemu-system|swtee|/usr/bin/vmlatch"); left != "" {
		t.Errorf("processes after removal: %s", left)
	}
	m.run("test", "-e", "/var/lib/vmlatch/disk.raw")
}
