package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/integration/qemus"
)

// testsFor builds tests of a package that need a kernel, a systemd, or a host of their own, and
// have a build tag for that.
func testsFor(t *testing.T, pkg, tag string) (program string) {
	t.Helper()
	program = filepath.Join(binaries, filepath.Base(pkg)+".test")
	cmd := exec.Command("go", "test", "-c", "-tags", tag, "-ldflags=-s -w", "-o", program, "./"+pkg)
	cmd.Dir, cmd.Env = top(), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return program
}

// passInGuest runs a program's tests of kernels in a guest, whose initrd has it as tests; words are
// added to the command line, and more to the spec.
func (h *host) passInGuest(kernel, initrd, words, more, test string) {
	h.t.Helper()
	h.write("vm.toml", fmt.Sprintf("qemu = %q\nmemory = \"512MiB\"\n[kernel]\nimage = %q\ninitrd = %q\n"+
		"cmdline = \"console=ttyS0 quiet panic=-1 no_timer_check %s vmlatch.run=/tests"+
		" vmlatch.args=-test.v,-test.run=TestKernel\"\n%s", qemus.Newest(h.t), kernel, initrd, words, more))
	h.run("vmlatch", "start", "vm.toml")
	h.run("vmlatch", "wait", "vm")
	h.shows("the guest's console", h.run("vmlatch", "logs", "vm"), "--- PASS: "+test)
	h.run("vmlatch", "rm", "vm")
}

// TestLimits: a kernel whose control groups are all of version 2 enforces what [limits] writes.
func TestLimits(t *testing.T) {
	t.Parallel()
	c := needCoco(t)
	h := newHost(t)
	initrd := h.initrdWith("drivers/block/virtio_blk")
	h.addToInitrd(initrd, "tests", testsFor(t, "launcher/cgroup", "cgroups"))
	h.write("disk.raw", strings.Repeat("x", 8<<20))
	h.passInGuest(c.kernel, initrd, "vmlatch.modules", "[[disk]]\nimage = \"disk.raw\"\n", "TestKernel")

	// A VM has its limits, or does not start.
	h.write("vm.toml", "memory = \"256MiB\"\n[limits]\nmemory = \"400MiB\"\ncpu = 0.5\npids = 100\n")
	h.shows("plan", h.run("vmlatch", "plan", "vm.toml"), "limit of memory", "400MiB", "0.5 processors")
	out, err := h.attempt(h.command("vmlatch", "start", "--hold", "vm.toml"))
	if err != nil {
		h.shows("what a host lacks", out, "limits-possible")
		waitNothing(t, h.work)
		return
	}
	var vm struct{ PID int }
	if err := json.Unmarshal([]byte(h.run("vmlatch", "inspect", "vm", "--json")), &struct {
		Record any `json:"record"`
	}{&vm}); err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile(`control group\s+(\S+)`).FindStringSubmatch(h.run("vmlatch", "inspect", "vm"))
	if row == nil {
		t.Fatal("inspect names no control group")
	}
	for name, want := range map[string]string{
		"memory.max": "419430400\n", "cpu.max": "50000 100000\n", "pids.max": "100\n",
		"cgroup.procs": fmt.Sprintln(vm.PID),
	} {
		if got := read(t, filepath.Join(row[1], name)); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	h.run("vmlatch", "stop", "vm", "--now")
	h.run("vmlatch", "rm", "vm")
	waitNothing(t, h.work)
}
