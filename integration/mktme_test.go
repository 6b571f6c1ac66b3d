package integration

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/keyring"
)

const mktmeSpec = `
name   = "keyed"
memory = "256MiB"
[kernel]
image   = "vmlinuz"
initrd  = "initrd.img"
cmdline = "console=ttyS0 quiet"
[confidential]
technology = "mktme"
mktme      = { object = "mktme-guest", handle-property = "key-handle" }
[latch]
until = "nothing"
`

var handleInArgv = regexp.MustCompile(`"key-handle":(\d+)`)

// keyOf finds the handle in the command line of what runs the VM.
func (h *host) keyOf() int {
	h.t.Helper()
	for _, line := range processes(h.work + "/") {
		if m := handleInArgv.FindStringSubmatch(line); m != nil {
			n, _ := strconv.Atoi(m[1])
			return n
		}
	}
	h.t.Fatal("nobody has a key's handle")
	return 0
}

// keyExists asks the kernel about a key that this process does not possess.
func keyExists(n int) bool {
	_, err := unix.KeyctlString(unix.KEYCTL_DESCRIBE, n)
	return err == nil || errors.Is(err, unix.EACCES)
}

// keysOfUser counts a user's keys (proc(5), /proc/key-users); 0 is this process's.
func keysOfUser(t *testing.T, uid int) int {
	if uid == 0 {
		uid = os.Geteuid()
	}
	b, err := os.ReadFile("/proc/key-users")
	if err != nil {
		t.Skip(err)
	}
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) > 1 && f[0] == strconv.Itoa(uid)+":" {
			n, _, _ := strings.Cut(f[1], "/")
			count, _ := strconv.Atoi(n)
			return count
		}
	}
	return 0
}

func within(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// TestMKTMELaunch: a VM with a key of its own, which nobody else can use, and which
// is gone with it, however it goes.
func TestMKTMELaunch(t *testing.T) {
	h := newHost(t)
	h.write("keyed.toml", mktmeSpec)
	if out := h.run("vmlatch", "plan", "--emulate", "keyed.toml"); !strings.Contains(out, "MKTME encrypts memory and measures nothing") || !strings.Contains(out, "@key@") {
		t.Errorf("plan: %s", out)
	}
	for _, how := range []string{"stop", "kill"} {
		out, err := h.command("vmlatch", "start", "keyed.toml", "--emulate").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "emulated") || !strings.Contains(string(out), "NOT verified") {
			t.Fatalf("%v: %s", err, out)
		}
		key := h.keyOf()
		if !keyExists(key) {
			t.Errorf("key %d of a running VM is gone", key)
		}
		if _, err := unix.KeyctlBuffer(unix.KEYCTL_READ, key, make([]byte, 64), 64); err == nil {
			t.Error("another process reads the key")
		}
		if b, _ := os.ReadFile("/proc/keys"); bytes.Contains(b, []byte("vmlatch:keyed")) {
			t.Error("another process sees the key")
		}
		if out := h.run("vmlatch", "inspect", "keyed"); !strings.Contains(out, "mktme (emulated") {
			t.Errorf("inspect: %s", out)
		}
		if out := h.fails("", "measure", "keyed"); !strings.Contains(out, "no launch measurement") {
			t.Errorf("measure: %s", out)
		}
		if how == "stop" {
			h.run("vmlatch", "stop", "keyed", "--now")
		} else {
			killAll(t, h.work)
		}
		within(t, "the key outlives its VM", func() bool { return !keyExists(key) })
		h.run("vmlatch", "ps")
	}
	h.write("run.toml", strings.Replace(mktmeSpec, "keyed", "run", 1))
	if out := h.run("vmlatch", "run", "--emulate", "run.toml"); !strings.Contains(out, "vmlatch-guest:") {
		t.Errorf("the guest does not boot: %s", out)
	}
	h.clearEnded()
	waitNothing(t, h.work)
}

// TestMKTMEFailedStart: a start that fails after its key was made leaves none.
func TestMKTMEFailedStart(t *testing.T) {
	h := newHostOf(t, 64009)
	h.write("keyed.toml", mktmeSpec)
	before := h.keys()
	h.write("host.toml", "[emulate]\nswtee = \"/bin/false\"\n")
	h.env = append(h.env, "VMLATCH_CONFIG="+filepath.Join(h.work, "host.toml"))
	_ = h.fails("", "start", "keyed.toml", "--emulate")
	within(t, "a start that failed leaves a key", func() bool { return h.keys() <= before })
}

// TestMKTMEHandle: a handle that QEMU does not possess is no key, and without
// emulation there is no such object.
func TestMKTMEHandle(t *testing.T) {
	h := newHost(t)
	var key keyring.Serial
	err := keyring.Apart(func(r *keyring.Ring) (err error) {
		if key, err = r.Add(keyring.Key{Type: keyring.User, Description: "vmlatch-test:foreign", Payload: []byte("x")}); err != nil {
			return err
		}
		for handle, want := range map[string]string{"0": "not a key's handle", "x": "not a key's handle", "2147483647": "is not possessed"} {
			h.objectRefused(handle, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	h.objectRefused(strconv.Itoa(int(key)), "is not possessed")
	h.write("keyed.toml", mktmeSpec)
	if out := h.fails("", "start", "keyed.toml"); !strings.Contains(out, "mktme") || !strings.Contains(out, "hint: ") {
		t.Errorf("on this host: %s", out)
	}
	h.write("keyed.toml", strings.Replace(mktmeSpec, "mktme-guest", "tme-guest", 1))
	if out := h.fails("", "start", "keyed.toml", "--emulate"); !strings.Contains(out, "the emulated platform's object is mktme-guest") {
		t.Errorf("another object: %s", out)
	}
	out, err := h.command("swtee", "--fake-kvm", "--", "qemu-system-x86_64", "-object", "mktme-guest,id=k,key-handle=1").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "under TCG only") {
		t.Errorf("%v: %s", err, out)
	}
}

func (h *host) objectRefused(handle, want string) {
	h.t.Helper()
	out, err := h.command("swtee", "--accel", "tcg", "--", "qemu-system-x86_64", "-S", "-display", "none", "-object", "mktme-guest,id=k,key-handle="+handle).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !strings.Contains(string(out), want) {
		h.t.Errorf("handle %s: %v, %s\nwant %q", handle, err, out, want)
	}
}
