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

// keyOf finds the key's handle in the command line of the VM's process.
func (h *host) keyOf() int {
	h.t.Helper()
	for _, line := range processes(h.work + "/") {
		if m := handleInArgv.FindStringSubmatch(line); m != nil {
			n, _ := strconv.Atoi(m[1])
			return n
		}
	}
	h.t.Fatal("no process has a key's handle in its command line")
	return 0
}

// keyExists asks the kernel about a key that this process does not possess.
func keyExists(n int) bool {
	_, err := unix.KeyctlString(unix.KEYCTL_DESCRIBE, n)
	return err == nil || errors.Is(err, unix.EACCES)
}

// keysOfUser counts a user's keys (proc(5), /proc/key-users); 0 is this process's user.
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

// TestMKTMELaunch: a VM has a key of its own, which no other process can use, and which
// is gone when the VM is, however it ends.
func TestMKTMELaunch(t *testing.T) {
	h := newHost(t)
	h.write("keyed.toml", mktmeSpec)
	h.shows("plan", h.run("vmlatch", "plan", "--emulate", "keyed.toml"),
		"MKTME encrypts memory and measures nothing", "@key@")
	for _, how := range []string{"stop", "kill"} {
		out, err := h.command("vmlatch", "start", "keyed.toml", "--emulate").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "emulated") ||
			!strings.Contains(string(out), "NOT verified") {
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
		h.shows("inspect", h.run("vmlatch", "inspect", "keyed"), "mktme (emulated")
		h.shows("measure", h.fails("", "measure", "keyed"), "no launch measurement")
		if how == "stop" {
			h.run("vmlatch", "stop", "keyed", "--now")
		} else {
			killAll(t, h.work)
		}
		within(t, "the key outlives its VM", func() bool { return !keyExists(key) })
		h.run("vmlatch", "ps")
	}
	h.write("run.toml", strings.Replace(mktmeSpec, "keyed", "run", 1))
	h.shows("the guest's console", h.run("vmlatch", "run", "--emulate", "run.toml"), "vmlatch-guest:")
	h.clearEnded()
	waitNothing(t, h.work)
}

// TestMKTMEFailedStart: a start that fails after it has made its key leaves no key.
func TestMKTMEFailedStart(t *testing.T) {
	h := newHostOf(t, 64009)
	h.write("keyed.toml", mktmeSpec)
	before := h.keys()
	h.write("host.toml", "[emulate]\nswtee = \"/bin/false\"\n")
	h.env = append(h.env, "VMLATCH_CONFIG="+filepath.Join(h.work, "host.toml"))
	_ = h.fails("", "start", "keyed.toml", "--emulate")
	within(t, "a start that failed leaves a key", func() bool { return h.keys() <= before })
}

// TestMKTMEHandle: a handle that QEMU does not possess is refused, and without
// emulation there is no such object.
func TestMKTMEHandle(t *testing.T) {
	h := newHost(t)
	var key keyring.Serial
	err := keyring.Apart(func(r *keyring.Ring) (err error) {
		foreign := keyring.Key{Type: keyring.User, Description: "vmlatch-test:foreign", Payload: []byte("x")}
		if key, err = r.Add(foreign); err != nil {
			return err
		}
		for handle, want := range map[string]string{
			"0":          "not a key's handle",
			"x":          "not a key's handle",
			"2147483647": "is not possessed",
		} {
			h.objectRefused(handle, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	h.objectRefused(strconv.Itoa(int(key)), "is not possessed")
	h.write("keyed.toml", mktmeSpec)
	h.shows("start on this host", h.fails("", "start", "keyed.toml"), "mktme", "hint: ")
	h.write("keyed.toml", strings.Replace(mktmeSpec, "mktme-guest", "tme-guest", 1))
	h.shows("start with another object", h.fails("", "start", "keyed.toml", "--emulate"),
		"the emulated platform's object is mktme-guest")
	out, err := h.command("swtee", "--fake-kvm", "--", "qemu-system-x86_64",
		"-object", "mktme-guest,id=k,key-handle=1").CombinedOutput()
	if err == nil {
		t.Errorf("the object is accepted on KVM: %s", out)
	}
	h.shows("the object on KVM", string(out), "under TCG only")
}

func (h *host) objectRefused(handle, want string) {
	h.t.Helper()
	out, err := h.command("swtee", "--accel", "tcg", "--", "qemu-system-x86_64", "-S", "-display", "none",
		"-object", "mktme-guest,id=k,key-handle="+handle).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !strings.Contains(string(out), want) {
		h.t.Errorf("handle %s: %v, %s\nwant %q", handle, err, out, want)
	}
}
