package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/integration/qemus"
	facts "github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/qmp"
)

// under makes a host on which swtee runs QEMU's own code on a fake KVM.
func under(t *testing.T) *host {
	h := newHost(t)
	h.env = append(h.env, "SWTEE_ACCEL=under", "SWTEE_FAKE_KVM=1")
	return h
}

// useQEMU writes the example's spec, which it makes use a given QEMU.
func (h *host) useQEMU(qemu string) {
	b, err := os.ReadFile(filepath.Join(top(), "examples/sev/guest.toml"))
	if err != nil {
		h.t.Fatal(err)
	}
	h.write("guest.toml", "qemu = \""+qemu+"\"\n"+string(b))
}

// TestStoryUnderQEMU is the main job through QEMU's own SEV code, on each QEMU:
// paused, verified, secret injected and read back from guest memory, released.
func TestStoryUnderQEMU(t *testing.T) {
	t.Parallel()
	qemus.Each(t, "7.2", func(t *testing.T, qemu string) {
		h := under(t)
		h.session()
		h.useQEMU(qemu)
		h.run("vmlatch", "start", "guest.toml", "--emulate", "--hold")
		h.measured()
		h.shows("verify", h.latchkey("verify"), "verified")
		h.packet()
		h.run("vmlatch", "inject", "guest", "p.json")
		memory := filepath.Join(h.work, "memory")
		args, _ := json.Marshal(map[string]any{"val": 0x810000, "size": 0xc00, "filename": memory})
		h.run("vmlatch", "qmp", "guest", "pmemsave", string(args))
		b, err := os.ReadFile(memory)
		if err != nil || !bytes.Contains(b, []byte("correct horse battery")) {
			t.Errorf("guest memory does not hold the secret: %v", err)
		}
		h.run("vmlatch", "release", "guest")
		h.shows("ps", h.run("vmlatch", "ps"), "running", "emulated")
		h.run("vmlatch", "stop", "guest", "--now")
	})
}

// swtee runs the program itself, with a monitor on an inherited socket, 3.
func (h *host) swtee(credential *syscall.Credential, args ...string) (*exec.Cmd, *qmp.Conn, *bytes.Buffer) {
	h.t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	nc, err := net.FileConn(ours)
	if err != nil {
		h.t.Fatal(err)
	}
	ours.Close()
	cmd := h.command("swtee", args...)
	cmd.Args = append(
		cmd.Args,
		"-chardev",
		"socket,id=m,fd=3",
		"-mon",
		"chardev=m,mode=control",
		"-S",
		"-nodefaults",
		"-display",
		"none",
		"-m",
		"64",
		"-accel",
		"kvm",
		"-machine",
		"q35,confidential-guest-support=s0",
		"-object",
		"sev-guest,id=s0,cbitpos=51,reduced-phys-bits=1",
		"-bios",
		filepath.Join(h.work, "OVMF.amdsev.fd"),
		"-sandbox",
		"on",
	)
	var stderr bytes.Buffer
	cmd.Stderr, cmd.ExtraFiles = &stderr, []*os.File{theirs}
	if credential != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	}
	if err := cmd.Start(); err != nil {
		h.t.Skipf("run swtee: %v", err)
	}
	theirs.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := qmp.NewConn(ctx, nc, qmp.Options{})
	if err != nil {
		_ = cmd.Wait()
		return cmd, nil, &stderr
	}
	h.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait(); _ = conn.Close() })
	return cmd, conn, &stderr
}

// TestSupervisorDeath: QEMU does not outlive the process that emulates its platform.
func TestSupervisorDeath(t *testing.T) {
	h := newHost(t).race()
	cmd, conn, stderr := h.swtee(nil, "--fake-kvm", "--", qemus.Newest(t))
	if conn == nil {
		t.Fatal(stderr)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	waitNothing(t, h.work)
}

// TestUnprivileged: the user nobody, without /dev/kvm, can launch.
func TestUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("this test becomes the user nobody, which takes root; the others run unprivileged already")
	}
	h := newHost(t)
	dir, err := os.MkdirTemp("/tmp", "swtee-unprivileged-*")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := errors.Join(
		os.Chmod(dir, 0o777),
		copyFile(filepath.Join(h.work, "OVMF.amdsev.fd"), filepath.Join(dir, "OVMF.amdsev.fd")),
		copyFile(filepath.Join(binaries, "swtee"), filepath.Join(dir, "swtee")),
	); err != nil {
		t.Fatal(err)
	}
	nobody := &syscall.Credential{Uid: 65534, Gid: 65534}
	qemu := qemus.Newest(t)
	reach := exec.Command(qemu, "--version")
	reach.SysProcAttr, reach.Dir = &syscall.SysProcAttr{Credential: nobody}, dir
	if out, err := reach.CombinedOutput(); err != nil {
		t.Skipf("the user nobody cannot run the QEMU under test here: %v %s", err, out)
	}
	h.work = dir
	h.env = append(h.env, "SWTEE_PLATFORM="+filepath.Join(dir, "platform"), "HOME="+dir)
	saved := binaries
	binaries = dir
	defer func() { binaries = saved }()
	_, conn, stderr := h.swtee(nobody, "--fake-kvm", "--", qemu)
	if conn == nil {
		t.Fatal(stderr)
	}
	m, err := qmp.QuerySEVLaunchMeasure{}.Execute(t.Context(), conn)
	if err != nil || len(m) != 48 {
		t.Errorf("measurement of %d bytes, want 48: %v", len(m), err)
	}
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}

// TestSecondSupervisor: a process can have only one seccomp listener. If there is one
// already, such as a container runtime's, swtee says so.
func TestSecondSupervisor(t *testing.T) {
	h := newHost(t).race()
	inner := filepath.Join(binaries, "swtee")
	_, conn, stderr := h.swtee(nil, "--fake-kvm", "--", inner, "--fake-kvm", "--", qemus.Newest(t))
	if conn != nil {
		t.Fatal("swtee runs within swtee")
	}
	h.shows("swtee", stderr.String(), "already watches", "hint: ")
}

// TestReport: --report writes a report while the guest is paused, and another at the end.
func TestReport(t *testing.T) {
	h := newHost(t)
	file := filepath.Join(h.work, "report.json")
	cmd, conn, stderr := h.swtee(nil, "--fake-kvm", "--report", file, "--", qemus.Newest(t))
	if conn == nil {
		t.Fatal(stderr)
	}
	read := func() (r struct {
		Schema, Technology string
		Emulated           bool
		Launch             struct{ Digest string }
		Pages              []struct {
			Type, Digest string
			GPA          uint64
			Size         int
			Measured     bool
		}
		Commands []struct{ Command, Status string }
	},
	) {
		b, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(b, &r)
		}
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if err := conn.Execute(t.Context(), "query-status", nil, nil); err != nil { // the machine is built
		t.Fatal(err)
	}
	r := read()
	if r.Schema != "swtee-report/1" || !r.Emulated || r.Technology != "sev" || len(r.Launch.Digest) != 64 {
		t.Errorf("report %+v", r)
	}
	if len(r.Pages) != 1 || r.Pages[0].GPA != 1<<32-uint64(r.Pages[0].Size) || !r.Pages[0].Measured {
		t.Errorf("pages %+v", r.Pages)
	}
	_ = conn.Execute(t.Context(), "cont", nil, nil)
	_ = conn.Execute(t.Context(), "quit", nil, nil)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	r = read()
	if last := r.Commands[len(r.Commands)-1]; last.Command != "LAUNCH_FINISH" || last.Status != "SUCCESS" {
		t.Errorf("last command %+v", last)
	}
}

// TestReportFile: a report that cannot be written is refused before QEMU starts.
func TestReportFile(t *testing.T) {
	h := newHost(t)
	pipe, link := filepath.Join(h.work, "pipe"), filepath.Join(h.work, "link")
	target := filepath.Join(h.work, "target")
	if err := errors.Join(
		syscall.Mkfifo(pipe, 0o600),
		os.WriteFile(target, []byte("old"), 0o600),
		os.Symlink(target, link),
	); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		file, want string
		code       int
	}{
		{pipe, "no process reads this pipe", 2},
		{h.work, "is a directory", 2},
		{filepath.Join(h.work, "no/file"), "no such file", 2},
		{link, "", 0},
		{"/dev/stderr", `"schema": "swtee-report/1"`, 0},
	} {
		cmd := h.command("swtee", "--fake-kvm", "--report", c.file, "--", "qemu-system-x86_64", "-version")
		out, err := cmd.CombinedOutput()
		h.shows(c.file, string(out), c.want)
		if code := cmd.ProcessState.ExitCode(); code != c.code {
			t.Errorf("%s: %v, want code %d", c.file, err, c.code)
		}
	}
	if b, err := os.ReadFile(target); err != nil || !bytes.Contains(b, []byte("swtee-report/1")) {
		t.Errorf("the target of a link holds %.20s, %v; want the report", b, err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Error("the link was replaced")
	}
}

// TestHangup: closing the terminal ends QEMU, and the report is written.
func TestHangup(t *testing.T) {
	h := newHost(t).race()
	file := filepath.Join(h.work, "report.json")
	cmd, conn, stderr := h.swtee(nil, "--fake-kvm", "--report", file, "--", qemus.Newest(t))
	if conn == nil {
		t.Fatal(stderr)
	}
	if err := conn.Execute(t.Context(), "query-status", nil, nil); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Process.Signal(syscall.SIGHUP)
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, stderr)
	}
	if b, err := os.ReadFile(file); err != nil || !bytes.Contains(b, []byte("LAUNCH_MEASURE")) {
		t.Errorf("no report: %v", err)
	}
	waitNothing(t, h.work)
}

// TestChoiceOfAccelerator: swtee reports how it runs QEMU, and why.
func TestChoiceOfAccelerator(t *testing.T) {
	h := newHost(t)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--fake-kvm", "--accel", "tcg", "--", "qemu"}, "exclude each other"},
		{[]string{"--accel", "xen", "--", "qemu"}, "must be auto, under, twin or tcg"},
		{[]string{"--fault", "LAUNCH_NOTHING=EIO", "--", "qemu"}, "unknown command \"LAUNCH_NOTHING\""},
		{[]string{"--fake-kvm", "--", "qemu-system-x86_64", "-daemonize"}, "would go on without swtee"},
		{[]string{"--accel", "tcg", "--", "qemu-system-x86_64", "-daemonize"}, "would outlive swtee"},
		{[]string{"--fake-kvm", "--", filepath.Join(h.work, "no-such-qemu")}, "no such file"},
		{
			args: []string{"--fake-kvm", "--", "qemu-system-x86_64", "-version"},
			want: "on a fake KVM, the guest does not execute: as asked",
		},
	} {
		out, _ := h.command("swtee", c.args...).CombinedOutput()
		h.shows(strings.Join(c.args, " "), string(out), c.want)
	}
}

// TestLibvirtEmulator runs the <emulator> script as libvirt first runs QEMU, to ask what
// it can do: in the background, with a monitor and a pid file.
func TestLibvirtEmulator(t *testing.T) {
	h := newHost(t)
	socket, pidfile := filepath.Join(h.work, "probe.sock"), filepath.Join(h.work, "probe.pid")
	probe := []string{
		"-S", "-no-user-config", "-nodefaults", "-nographic", "-machine", "none,accel=kvm",
		"-qmp", "unix:" + socket + ",server=on,wait=off", "-pidfile", pidfile, "-daemonize",
	}
	script := filepath.Join(top(), "examples/libvirt/qemu-swtee")
	run := func(args ...string) ([]byte, error) {
		cmd := exec.Command(script, args...)
		cmd.Env = append(h.env, "SWTEE_FAKE_KVM=1", "SWTEE_QEMU="+qemus.Newest(t))
		return cmd.CombinedOutput()
	}
	_, before := os.Lstat("/dev/kvm")
	if out, err := run(probe...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, err := os.Lstat("/dev/kvm"); (err == nil) != (before == nil) {
		t.Errorf("/dev/kvm before: %v, and after: %v", before, err)
	}
	conn, err := qmp.Dial(t.Context(), socket, qmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	caps, err := qmp.QuerySEVCapabilities{}.Execute(t.Context(), conn)
	cpus, _ := os.ReadFile("/proc/cpuinfo") // where CPUID cannot be trapped, the processor answers it
	if err != nil || caps.CBitPos != 51 && bytes.Contains(cpus, []byte(" cpuid_fault")) || len(caps.CertChain) == 0 {
		t.Errorf("%+v, %v", caps, err)
	}
	if _, err := os.Stat(pidfile); err != nil {
		t.Error(err)
	}
	_ = conn.Execute(t.Context(), "quit", nil, nil)
	waitNothing(t, h.work)
	out, err := run(append(probe, "-no-such-option")...)
	if err == nil {
		t.Error("it succeeds with an option that QEMU does not have")
	}
	h.shows("a QEMU that does not start", string(out), "no-such-option")
}

// TestGuestBootsUnderTCG: on each QEMU, all of which serve a kernel differently, the
// firmware verifies that the kernel is the one that was measured, and finds the secret.
func TestGuestBootsUnderTCG(t *testing.T) {
	t.Parallel()
	qemus.Each(t, "7.2", func(t *testing.T, qemu string) {
		h := newHost(t)
		h.env = append(h.env, "SWTEE_ACCEL=tcg")
		h.session()
		h.useQEMU(qemu)
		h.run("vmlatch", "start", "guest.toml", "--emulate", "--hold")
		h.releaseWithSecret()
	})
}

// releaseWithSecret takes a held guest through verification, injection and release,
// and waits until it shows the hash of its secret.
func (h *host) releaseWithSecret() {
	h.t.Helper()
	h.measured()
	h.latchkey("verify")
	h.packet()
	h.run("vmlatch", "inject", "guest", "p.json")
	h.run("vmlatch", "release", "guest")
	const sum = "e22b1c272cf8e757e6d96714cc75a7f358ac8314bea2b6cedfeff2869eb04b34"
	cmd := h.command("vmlatch", "logs", "--follow", "guest")
	late := time.AfterFunc(90*time.Second, func() { killAll(h.t, h.work) })
	defer late.Stop()
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), sum) {
		h.t.Errorf("the guest does not show its secret's hash: %v\n%s", err, out)
	}
}

// TestGuestBootsOnKVM: where KVM can run a guest, a guest that QEMU's own SEV code
// launched boots, unencrypted, and finds its secret.
func TestGuestBootsOnKVM(t *testing.T) {
	if ok, why := facts.KVM(); !ok {
		t.Skip(why)
	}
	h := newHost(t)
	h.env = append(h.env, "SWTEE_ACCEL=under")
	h.session()
	h.useQEMU("qemu-system-x86_64")
	h.run("vmlatch", "start", "guest.toml", "--emulate", "--hold")
	h.releaseWithSecret()
}
