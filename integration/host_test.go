package integration

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// host is one user's machine for a test: directories and a spec.
type host struct {
	t    *testing.T
	work string
	bin  string // directory of the programs
	env  []string
	uid  int    // of the user who runs the commands; 0: this process's user
	room func() // makes room on a full disk; nil if the disk is not full
}

func newHost(t *testing.T) *host {
	t.Helper()
	return newHostOf(t, 0)
}

// newHostOf is a machine of another user, if this process may become that user.
func newHostOf(t *testing.T, uid int) *host {
	t.Helper()
	needGuest(t)
	h := &host{t: t, work: t.TempDir(), bin: binaries}
	if os.Geteuid() == 0 {
		h.uid = uid
	}
	h.env = append(os.Environ(),
		"PATH="+binaries+":"+os.Getenv("PATH"),
		"HOME="+h.work,
		"VMLATCH_RUN_DIR="+filepath.Join(h.work, "run"),
		"VMLATCH_STATE_DIR="+filepath.Join(h.work, "state"),
		"VMLATCH_CACHE_DIR="+cacheDir(),
		"SWTEE_PLATFORM="+platformDir())
	for _, f := range guestFiles {
		from, to := filepath.Join(top(), ".cache/guest", f), filepath.Join(h.work, f)
		if h.uid == 0 {
			if err := os.Symlink(from, to); err != nil {
				t.Fatal(err)
			}
			continue
		}
		b, err := os.ReadFile(from) // another user may have no access to this checkout
		if err == nil {
			err = os.WriteFile(to, b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if h.uid != 0 {
		h.env = append(h.env,
			"VMLATCH_CACHE_DIR="+filepath.Join(h.work, "cache"),
			"SWTEE_PLATFORM="+filepath.Join(h.work, "chip"))
		h.own(h.work)
		for dir := filepath.Dir(h.work); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
			_ = os.Chmod(dir, 0o755) // the user must be able to reach it
		}
	}
	t.Cleanup(func() { killAll(t, h.work) })
	return h
}

// race runs programs that were built with the race detector, which take several times as long to
// start: for tests in which several things happen at once.
func (h *host) race() *host {
	h.bin = raced
	h.env = append(h.env, "PATH="+raced+":"+os.Getenv("PATH"))
	return h
}

// own makes the machine's user the owner of a file.
func (h *host) own(file string) {
	if h.uid != 0 {
		if err := os.Chown(file, h.uid, h.uid); err != nil {
			h.t.Fatal(err)
		}
	}
}

func (h *host) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(h.bin, name), args...)
	cmd.Env, cmd.Dir = h.env, h.work
	if h.uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Credential: &syscall.Credential{Uid: uint32(h.uid), Gid: uint32(h.uid)},
		}
	}
	return cmd
}

// run runs a command that must succeed.
func (h *host) run(name string, args ...string) string {
	h.t.Helper()
	var out, errs bytes.Buffer
	cmd := h.command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		h.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, errs.String())
	}
	return out.String()
}

func (h *host) write(name, text string) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.work, name), []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
	h.own(filepath.Join(h.work, name))
}

// session makes a fresh session named guest, with latchkey's default policy unless
// another is given.
func (h *host) session(policy ...string) {
	h.t.Helper()
	h.write("platform.json", h.run("vmlatch", "platform", "--emulate"))
	h.write("root.pem", h.run("swtee", "root"))
	h.write("cek.cert", h.run("swtee", "cek"))
	args := []string{
		"session", "--force", "--platform", "platform.json", "--cek", "cek.cert", "--trust-root", "root.pem",
		"--out", ".",
	}
	if len(policy) > 0 {
		args = append(args, "--policy", strings.Join(policy, ","))
	}
	h.run("latchkey", args...)
}

// clearEnded removes the logs and records of VMs that have ended.
func (h *host) clearEnded() { _ = os.RemoveAll(filepath.Join(h.work, "state")) }

// attempt runs a command that may fail, and returns its output.
func (h *host) attempt(cmd *exec.Cmd) (string, error) {
	h.t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		h.t.Fatal(err)
	}
	return out.String(), err
}

// fails runs a vmlatch command that must fail, with a fault of the emulated platform
// unless that is "".
func (h *host) fails(fault string, args ...string) string {
	h.t.Helper()
	cmd := h.command("vmlatch", args...)
	cmd.Env = append(cmd.Env, "SWTEE_FAULT="+fault)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		h.t.Errorf("%s with %s: %v\n%s", args[0], fault, err, out)
	}
	return string(out)
}

// pulled runs a command that ends a VM with a guest that does not power off, and says so
// by its exit code.
func (h *host) pulled(args ...string) {
	h.t.Helper()
	out, err := h.attempt(h.command("vmlatch", args...))
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 5 || !strings.Contains(out, "did not power off in time") {
		h.t.Errorf("%v: %v, want exit code 5: %s", args, err, out)
	}
}

// wrapped is a command run by another program, such as strace.
func wrapped(cmd *exec.Cmd, by string, args ...string) *exec.Cmd {
	outer := exec.Command(by, append(append(args, cmd.Path), cmd.Args[1:]...)...)
	outer.Env, outer.Dir = cmd.Env, cmd.Dir
	return outer
}

// shows requires that what a command printed contains all the texts.
func (h *host) shows(what, out string, texts ...string) {
	h.t.Helper()
	for _, text := range texts {
		if !strings.Contains(out, text) {
			h.t.Errorf("%s: %s\nwant %q in it", what, out, text)
		}
	}
}

const guestCmdline = "console=ttyS0 quiet vmlatch.secret=0x810000+0xc00"

// latchkey runs one of the owner's commands on m.json, which holds a measurement of
// the example's guest.
func (h *host) latchkey(command string, more ...string) string {
	h.t.Helper()
	return h.run("latchkey", ownerArgs(command, more...)...)
}

// ownerArgs are the arguments of latchkey for m.json and the files of the example's guest.
func ownerArgs(command string, more ...string) []string {
	return append([]string{
		command, "--owner", "guest.owner", "--measurement", "m.json",
		"--firmware", "OVMF.amdsev.fd", "--kernel", "vmlinuz", "--initrd", "initrd.img", "--cmdline", guestCmdline,
	}, more...)
}

// measured measures the held guest into m.json.
func (h *host) measured() {
	h.t.Helper()
	h.write("m.json", h.run("vmlatch", "measure", "guest"))
}

// packet makes p.json, which holds the guest's secret.
func (h *host) packet() {
	h.t.Helper()
	h.write("passphrase", "correct horse battery\n")
	h.run("latchkey", "secret", "--owner", "guest.owner", "--measurement", "m.json",
		"--entry", "disk=passphrase", "--out", "p.json")
}
