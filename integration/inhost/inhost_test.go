//go:build inhost

package inhost

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// vm is a VM of a test, in directories of its own.
type vm struct {
	*testing.T
	dir string
	by  []string // runs vmlatch start; nil for this process
}

func newVM(t *testing.T, spec string) *vm {
	t.Helper()
	v := &vm{T: t, dir: t.TempDir()}
	qemu := os.Getenv("INHOST_QEMU")
	v.write("vm.toml", fmt.Sprintf("qemu = %q\naccel = \"tcg\"\nmemory = \"64MiB\"\n%s", qemu, spec))
	t.Cleanup(func() {
		if out, err := v.try("stop", "--now", "--ignore", "vm"); err != nil {
			t.Errorf("stop: %v: %s", err, out)
		}
	})
	return v
}

func (v *vm) write(name, text string) string {
	v.Helper()
	file := filepath.Join(v.dir, name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		v.Fatal(err)
	}
	return file
}

func (v *vm) try(args ...string) (string, error) {
	line := append([]string{filepath.Join(os.Getenv("INHOST_BIN"), "vmlatch")}, args...)
	if args[0] == "start" {
		line = append(slices.Clone(v.by), line...)
	}
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Dir = v.dir
	cmd.Env = append(os.Environ(), "VMLATCH_RUN_DIR="+v.dir+"/run", "VMLATCH_STATE_DIR="+v.dir+"/state",
		"VMLATCH_CACHE_DIR=/run/cache")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (v *vm) run(args ...string) string {
	v.Helper()
	out, err := v.try(args...)
	if err != nil {
		v.Fatalf("vmlatch %v: %v: %s", args, err, out)
	}
	return out
}

// start starts the VM, and returns QEMU's pid.
func (v *vm) start(options ...string) int {
	v.Helper()
	began := time.Now()
	out := v.run(append(append([]string{"start"}, options...), "vm.toml")...)
	v.Logf("start took %v: %s", time.Since(began), out)
	var is struct{ Record struct{ PID int } }
	if err := json.Unmarshal([]byte(v.run("inspect", "--json", "vm")), &is); err != nil {
		v.Fatal(err)
	}
	return is.Record.PID
}

// eventually waits until a command of vmlatch says something.
func (v *vm) eventually(want string, args ...string) {
	v.Helper()
	out := ""
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(time.Second) {
		if out = v.run(args...); strings.Contains(out, want) {
			return
		}
	}
	v.Errorf("vmlatch %v: %s\nwant %q in it", args, out, want)
}

func sh(t *testing.T, script string, args ...string) string {
	t.Helper()
	out, err := exec.Command("sh", append([]string{"-ec", script, "sh"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(bytes.TrimSpace(out))
}

// TestAppArmor: QEMU works under the package's profile, and inspect shows it.
func TestAppArmor(t *testing.T) {
	policy, err := os.ReadFile(os.Getenv("INHOST_POLICY"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/sys/kernel/security/apparmor/.replace", policy, 0); err != nil {
		t.Fatal(err)
	}
	v := newVM(t, "rng = true\n[[disk]]\nimage = \"disk.raw\"\n[tpm]\n[[network]]\n[display]\n")
	v.write("disk.raw", strings.Repeat("x", 1<<20))
	pid := v.start()
	out := v.run("inspect", "vm")
	for _, want := range []string{"by AppArmor's profile vmlatch-qemu", "label vmlatch-qemu (enforce)", "by Landlock"} {
		if !strings.Contains(out, want) {
			t.Errorf("inspect: %s\nwant %q in it", out, want)
		}
	}
	if got := sh(t, `cat "/proc/$1/attr/current"`, fmt.Sprint(pid)); got != "vmlatch-qemu (enforce)" {
		t.Errorf("its label is %q", got)
	}
	if out := v.run("qmp", "vm", "query-block"); !strings.Contains(out, "disk0") {
		t.Errorf("query-block: %s", out)
	}
	v.run("screenshot", "vm", "screen.png")
	v.run("pause", "vm")
	v.run("resume", "vm")
	if log := sh(t, "dmesg | grep -i 'apparmor=.DENIED' || true"); log != "" {
		t.Errorf("the profile is in the way of: %s", log)
	}
}

// TestLimits: a VM has its limits, and its kernel keeps it to them.
func TestLimits(t *testing.T) {
	sh(t, `cd /sys/fs/cgroup && mkdir -p inhost && echo "+memory +cpu +pids +io" > cgroup.subtree_control`)
	v := newVM(t, "[limits]\nmemory = \"300MiB\"\ncpu = 2\npids = 100\n")
	v.by = []string{"sh", "-ec", `echo $$ > /sys/fs/cgroup/inhost/cgroup.procs && exec "$@"`, "sh"}
	pid := v.start()
	group := "/sys/fs/cgroup" + strings.TrimPrefix(sh(t, `cat "/proc/$1/cgroup"`, fmt.Sprint(pid)), "0::")
	for name, want := range map[string]string{
		"memory.max": "314572800", "cpu.max": "200000 100000", "pids.max": "100", "cgroup.procs": fmt.Sprint(pid),
	} {
		if got := sh(t, `cat "$1"`, filepath.Join(group, name)); got != want {
			t.Errorf("%s of %s: %q, want %q", name, group, got, want)
		}
	}
	// The least that the kernel can do about a limit is to end the VM, and it is seen to end.
	sh(t, `echo 1M > "$1/memory.max"`, group)
	v.eventually("stopped", "ps", "--all")
	v.run("rm", "vm")
	if _, err := os.Stat(group); err == nil {
		t.Errorf("%s is left", group)
	}
}

// TestLogicalVolume: a logical volume is a disk like any other.
func TestLogicalVolume(t *testing.T) {
	image := filepath.Join(t.TempDir(), "pv")
	sh(t, `truncate -s 64M "$1"
		loop=$(losetup --find --show "$1")
		export DM_DISABLE_UDEV=1
		if command -v lvm >/dev/null; then
			mkdir -p /run/lvm /run/lock
			export LVM_SYSTEM_DIR=/run/lvm
			printf 'devices { use_devicesfile = 0 }\nbackup { backup = 0 archive = 0 }\n' >/run/lvm/lvm.conf
			lvm vgcreate vmlatchtest "$loop" && lvm lvcreate -y -Wn -Zn -L 16M -n data vmlatchtest
		else
			mkdir -p /dev/vmlatchtest
			dmsetup create vmlatchtest-data --table "0 32768 linear $loop 2048"
			ln -s /dev/mapper/vmlatchtest-data /dev/vmlatchtest/data
		fi`, image)
	const volume = "/dev/vmlatchtest/data"
	v := newVM(t, "[[disk]]\nimage = \""+volume+"\"\nformat = \"raw\"\ncache = \"none\"\n")
	v.start()
	if out := v.run("qmp", "vm", "query-named-block-nodes"); !strings.Contains(out, "16777216") {
		t.Errorf("its size is not the volume's: %s", out)
	}
	out, err := v.try("start", "vm.toml", "--name", "second")
	if err == nil || !strings.Contains(out, "disks-free") {
		t.Errorf("a second VM on it: %v: %s", err, out)
	}
	if out := v.run("disk", "info", volume); !strings.Contains(out, "16") {
		t.Errorf("disk info: %s", out)
	}
	// It fails under a running VM, which is told.
	sh(t, `dmsetup --noudevsync suspend vmlatchtest-data
		dmsetup --noudevsync load vmlatchtest-data --table "0 32768 error"
		dmsetup --noudevsync resume vmlatchtest-data`)
	v.run("qmp", "vm", "system_reset") // the firmware reads it again
	v.eventually("error: "+volume, "ps")
}

// TestDeviceGoes: a disk of the host's that is pulled out is said to be, and the VM is there until
// it is stopped.
func TestDeviceGoes(t *testing.T) {
	name := ""
	for range 100 {
		name = sh(t, `cd /sys/bus/pseudo/devices/adapter0/host*/target*/*/block 2>/dev/null && ls || true`)
		if name != "" {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if name == "" {
		t.Fatal("scsi_debug gives no disk")
	}
	v := newVM(t, fmt.Sprintf("[[disk]]\nimage = \"/dev/%s\"\nformat = \"raw\"\ncache = \"none\"\n", name))
	v.start()
	sh(t, `echo 1 > "/sys/block/$1/device/delete"`, name)
	v.run("qmp", "vm", "system_reset")
	v.eventually("/dev/"+name+" has gone", "ps")
	if out := v.run("ps"); !strings.Contains(out, "running") && !strings.Contains(out, "paused") {
		t.Errorf("ps: %s", out)
	}
	v.run("stop", "--now", "vm")
	out, err := v.try("start", "vm.toml")
	if err == nil || !strings.Contains(out, "/dev/"+name) {
		t.Errorf("it starts without its disk: %v: %s", err, out)
	}
}
