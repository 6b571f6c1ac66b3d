package integration

import (
	"encoding/json"
	"fmt"
	"image/png"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/integration/qemus"
)

// TestConfig: a plain guest finds its seed and its credentials, and no command line has them.
func TestConfig(t *testing.T) {
	t.Parallel()
	c := needCoco(t)
	h := newHost(t)
	h.write("user-data", "#cloud-config\n# secret-word\n")
	h.write("token", "secret-word")
	h.write("vm.toml", fmt.Sprintf("qemu = %q\nrng = true\nvmgenid = true\nwatchdog = \"none\"\npanic = \"none\"\n"+
		"[kernel]\nimage = %q\ninitrd = %q\n"+
		"cmdline = \"console=ttyS0 quiet panic=-1 no_timer_check vmlatch.modules\"\n"+
		"[config]\nuser-data = \"user-data\"\ncredentials = { api = \"token\" }\n",
		qemus.Version(t, "10.0"), c.kernel, h.initrdWith("drivers/block/virtio_blk")))
	if plan := h.run("vmlatch", "plan", "vm.toml"); strings.Contains(plan, "secret-word") ||
		strings.Contains(plan, "c2VjcmV0") {
		t.Errorf("the plan has the secret:\n%s", plan)
	}
	out, err := h.attempt(h.command("vmlatch", "plan", "vm.toml", "--tables", "tables.json"))
	if err == nil || !strings.Contains(out, "they would stand in the tables") {
		t.Errorf("tables with credentials: %v: %s", err, out)
	}
	h.run("vmlatch", "start", "vm.toml")
	h.run("vmlatch", "wait", "vm")
	logs := h.run("vmlatch", "logs", "vm")
	h.shows("the console", logs, "credential .binary:api=c2VjcmV0LXdvcmQ=", "is labelled cidata")
	h.run("vmlatch", "rm", "vm")
	waitNothing(t, h.work)
}

// TestScreen: a plain VM's screen is seen, and its agent's port is there, and both are gone with
// it.
func TestScreen(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	qemus.Each(t, "7.2", func(t *testing.T, qemu string) {
		h.t = t
		h.write("vm.toml", fmt.Sprintf("qemu = %q\n[display]\n[agent]\n", qemu))
		h.run("vmlatch", "start", "vm.toml")
		var picture string
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
			picture = filepath.Join(h.work, "screen.png")
			h.run("vmlatch", "screenshot", "vm", "screen.png")
			f, err := os.Open(picture)
			if err != nil {
				t.Fatal(err)
			}
			img, err := png.Decode(f)
			_ = f.Close()
			if err != nil {
				t.Fatal(err)
			}
			if img.Bounds().Dx() >= 640 {
				picture = ""
				break
			}
		}
		if picture != "" {
			t.Error("the screen stays small")
		}
		for _, socket := range []string{"screen/vnc.sock", "agent.sock"} {
			c, err := net.Dial("unix", filepath.Join(h.work, "run/vm", socket))
			if err != nil {
				t.Error(err)
				continue
			}
			_ = c.Close()
		}
		h.run("vmlatch", "stop", "vm", "--now")
		h.run("vmlatch", "rm", "vm")
		waitNothing(t, h.work)
	})
	h.t = t
	h.write("none.toml", "")
	h.run("vmlatch", "start", "--hold", "none.toml")
	out, err := h.attempt(h.command("vmlatch", "screenshot", "none", "x.png"))
	if err == nil || !strings.Contains(out, "[display] in its spec") {
		t.Errorf("without a screen: %v: %s", err, out)
	}
	h.run("vmlatch", "stop", "none", "--now")
	h.run("vmlatch", "rm", "none")
}

// TestPin: each of the guest's CPUs runs where its spec says, and so do QEMU's other threads.
func TestPin(t *testing.T) {
	t.Parallel()
	if runtime.NumCPU() < 2 {
		t.Skip("this takes two processors")
	}
	h := newHost(t)
	h.write("vm.toml", "cpus = 2\n[pin]\ncpus = [\"1\", \"0-1\"]\nqemu = \"0\"\n[memory-backend]\nnodes = \"0\"\n")
	h.run("vmlatch", "start", "--hold", "vm.toml")
	var cpus []struct {
		Thread int `json:"thread-id"`
	}
	said := h.run("vmlatch", "qmp", "vm", "query-cpus-fast")
	if err := json.Unmarshal([]byte(said), &cpus); err != nil || len(cpus) != 2 {
		t.Fatalf("%s: %v", said, err)
	}
	var vm struct{ PID int }
	if err := json.Unmarshal([]byte(h.run("vmlatch", "inspect", "vm", "--json")), &struct {
		Record any `json:"record"`
	}{&vm}); err != nil {
		t.Fatal(err)
	}
	allowed := map[int]string{} // by the threads' numbers in QEMU's namespace
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", vm.PID))
	for _, file := range tasks {
		line := func(key string) string {
			_, rest, _ := strings.Cut(read(t, file), key+":")
			text, _, _ := strings.Cut(rest, "\n")
			return strings.TrimSpace(text)
		}
		ids := strings.Fields(line("NSpid"))
		own, err := strconv.Atoi(ids[len(ids)-1])
		if err != nil {
			t.Fatal(err)
		}
		allowed[own] = line("Cpus_allowed_list")
		if ids[0] == strconv.Itoa(vm.PID) && allowed[own] != "0" {
			t.Errorf("QEMU itself runs on %q, want 0", allowed[own])
		}
	}
	if len(allowed) < 3 || allowed[cpus[0].Thread] != "1" || allowed[cpus[1].Thread] != "0-1" {
		t.Errorf("threads run on %v; %d wants 1, %d 0-1", allowed, cpus[0].Thread, cpus[1].Thread)
	}
	if maps := read(t, fmt.Sprintf("/proc/%d/numa_maps", vm.PID)); !strings.Contains(maps, "bind:0") {
		t.Errorf("no memory is bound to the node:\n%s", maps)
	}
	h.run("vmlatch", "stop", "vm", "--now")
	h.write("vm.toml", "[memory-backend]\nnodes = \"1000\"\n")
	h.refused("start vm.toml", 2, "memory-nodes")
	h.write("vm.toml", "[pin]\ncpus = [\"1000\"]\n")
	out, err := h.attempt(h.command("vmlatch", "start", "vm.toml"))
	if err == nil || !strings.Contains(out, "pin-processors") {
		t.Errorf("a processor that is not there: %v: %s", err, out)
	}
	h.run("vmlatch", "rm", "vm")
	waitNothing(t, h.work)
}

// TestShare: a guest reads and writes a directory of its host's.
func TestShare(t *testing.T) {
	t.Parallel()
	c := needCoco(t)
	if _, err := os.Stat("/usr/lib/qemu/virtiofsd"); err != nil || os.Getuid() != 0 {
		t.Skipf("virtiofsd needs root: %v", err)
	}
	h := newHost(t)
	if err := os.Mkdir(filepath.Join(h.work, "open"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.write("open/hello", "from the host\n")
	spec := func(words string) {
		h.write("vm.toml", fmt.Sprintf("qemu = %q\n[kernel]\nimage = %q\ninitrd = %q\n"+
			"cmdline = \"console=ttyS0 quiet panic=-1 no_timer_check %s\"\n[[share]]\npath = \"open\"\ntag = \"one\"\n",
			qemus.Newest(t), c.kernel, filepath.Join(top(), ".cache/guest/initrd.img"), words))
	}
	spec("vmlatch.mount=one")
	h.run("vmlatch", "start", "vm.toml")
	h.run("vmlatch", "wait", "vm")
	h.shows("the console", h.run("vmlatch", "logs", "vm"), "share one: from the host, written")
	if got := read(t, filepath.Join(h.work, "open/answer")); got != "from the host\n" {
		t.Errorf("the guest has written %q", got)
	}
	spec("vmlatch.stay")
	h.run("vmlatch", "start", "vm.toml")
	h.run("vmlatch", "stop", "vm", "--now") // and virtiofsd with it
	h.run("vmlatch", "rm", "vm")
	waitNothing(t, h.work)
}
