package integration

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/integration/qemus"
)

// pair is a running swtee with its two QEMUs, and a client of its monitor.
type pair struct {
	cmd          *exec.Cmd
	out          *watched
	ended        chan error
	oracle, twin int
	qmp          net.Conn
	in           *bufio.Reader
}

// startPair starts a guest that waits.
func (h *host) startPair(g guestLine, files []*os.File, options ...string) *pair {
	h.t.Helper()
	socket := filepath.Join(h.work, "qmp.sock")
	g.more = append(g.more, "-S", "-qmp", "unix:"+socket+",server=on,wait=off")
	p := &pair{out: &watched{}, ended: make(chan error, 1)}
	p.cmd = h.command(
		"swtee",
		append(append([]string{"--accel", "twin"}, options...), append([]string{"--"}, g.args()...)...)...)
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.ExtraFiles = p.out, p.out, files
	if err := p.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	go func() { p.ended <- p.cmd.Wait() }()
	h.t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	for deadline := time.Now().Add(30 * time.Second); p.qmp == nil; time.Sleep(10 * time.Millisecond) {
		p.qmp, _ = net.Dial("unix", socket)
		if time.Now().After(deadline) {
			h.t.Fatalf("no monitor: %s", p.out.String())
		}
	}
	p.in = bufio.NewReader(p.qmp)
	if _, err := p.in.ReadString('\n'); err != nil {
		h.t.Fatalf("no greeting: %v: %s", err, p.out.String())
	}
	h.t.Cleanup(func() { _ = p.qmp.Close() })
	p.do(h.t, "qmp_capabilities", "")
	for pid, line := range children(p.cmd.Process.Pid) {
		switch {
		case strings.Contains(line, "-accel kvm"):
			p.oracle = pid
		case strings.Contains(line, "-accel tcg"):
			p.twin = pid
		}
	}
	if p.oracle == 0 || p.twin == 0 {
		h.t.Fatalf("oracle %d, twin %d", p.oracle, p.twin)
	}
	return p
}

// children are the processes that a process has started, with their command lines.
func children(parent int) map[int]string {
	found := map[int]string{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		stat, err := os.ReadFile(d + "/stat")
		if err != nil {
			continue
		}
		after := string(stat[strings.LastIndexByte(string(stat), ')')+1:])
		fields := strings.Fields(after)
		if len(fields) < 2 || fields[1] != strconv.Itoa(parent) {
			continue
		}
		line, _ := os.ReadFile(d + "/cmdline")
		pid, _ := strconv.Atoi(filepath.Base(d))
		found[pid] = strings.ReplaceAll(string(line), "\x00", " ")
	}
	return found
}

// do runs a command, and returns what came: its result, its error's text, or why nothing came.
func (p *pair) do(t testing.TB, command, args string) string {
	t.Helper()
	text := fmt.Sprintf(`{"execute":%q}`, command)
	if args != "" {
		text = fmt.Sprintf(`{"execute":%q,"arguments":%s}`, command, args)
	}
	_ = p.qmp.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := p.qmp.Write([]byte(text + "\n")); err != nil {
		return err.Error()
	}
	for {
		line, err := p.in.ReadString('\n')
		if err != nil {
			return err.Error()
		}
		var r struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
			Event  string
		}
		switch {
		case json.Unmarshal([]byte(line), &r) != nil || r.Event != "":
		case r.Error != nil:
			return r.Error.Desc
		default:
			return string(r.Return)
		}
	}
}

// code waits for the end.
func (p *pair) code(t testing.TB) int {
	t.Helper()
	select {
	case err := <-p.ended:
		p.ended <- err
		var exit *exec.ExitError
		switch {
		case err == nil:
			return 0
		case errors.As(err, &exit):
			return exit.ExitCode()
		}
		t.Fatal(err)
	case <-time.After(20 * time.Second):
		t.Fatalf("it does not end: %s", p.out.String())
	}
	return 0
}

// bare is a guest without a kernel: nothing to boot, and quick.
func (h *host) bare(qemu string) guestLine {
	g := h.sevLine(qemu, 1)
	g.object = "sev-guest,id=cgs0,cbitpos=51,reduced-phys-bits=1,policy=1"
	g.kernel, g.initrd, g.append = "", "", ""
	return g
}

// TestTwinDeaths: whichever process is killed, at whichever step, all others end, and the exit code
// and the words say what happened.
func TestTwinDeaths(t *testing.T) {
	h := newHost(t).race()
	g := h.bare(qemus.Version(t, "10.0"))
	const killed = 128 + int(syscall.SIGKILL)
	for _, c := range []struct {
		victim  string
		running bool
		code    int
		words   string
	}{
		{"oracle", false, killed, "the QEMU that launches the guest was ended by signal 9"},
		{"oracle", true, 1, "the platform has gone"},
		{"twin", false, killed, ""},
		{"twin", true, killed, ""},
		{"swtee", false, -1, ""},
		{"swtee", true, -1, ""},
	} {
		p := h.startPair(g, nil)
		if c.running {
			if got := p.do(t, "cont", ""); got != "{}" {
				t.Fatalf("cont: %s", got)
			}
			// The launch is over: the oracle answers for it still.
			if got := p.do(t, "query-sev", ""); !strings.Contains(got, `"running"`) {
				t.Errorf("query-sev: %s", got)
			}
		}
		victim := map[string]int{"oracle": p.oracle, "twin": p.twin, "swtee": p.cmd.Process.Pid}[c.victim]
		if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if code := p.code(t); code != c.code || !strings.Contains(p.out.String(), c.words) {
			t.Errorf(
				"%s killed, running %t: code %d, %q, want %d, %q",
				c.victim,
				c.running,
				code,
				p.out.String(),
				c.code,
				c.words,
			)
		}
		waitNothing(t, h.work)
		_ = os.Remove(filepath.Join(h.work, "qmp.sock"))
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT} {
		p := h.startPair(g, nil)
		if err := p.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if code := p.code(t); code != 0 {
			t.Errorf("%v: code %d: %s", sig, code, p.out.String())
		}
		waitNothing(t, h.work)
		_ = os.Remove(filepath.Join(h.work, "qmp.sock"))
	}
	p := h.startPair(g, nil)
	p.do(t, "quit", "")
	if code := p.code(t); code != 0 {
		t.Errorf("quit: code %d: %s", code, p.out.String())
	}
	waitNothing(t, h.work)
}

// TestTwinIsPrivate: the two QEMUs share nothing but what is measured and what the caller holds,
// and clients cannot go around the launch.
func TestTwinIsPrivate(t *testing.T) {
	h := newHost(t)
	g := h.bare(qemus.Version(t, "11.1"))
	h.write("disk", strings.Repeat("x", 1<<20))
	disk, err := os.OpenFile(filepath.Join(h.work, "disk"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	h.write("lock", "")
	lock, err := os.Open(filepath.Join(h.work, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	g.more = []string{
		"-drive", "file=/proc/self/fd/3,format=raw,if=virtio", "-netdev", "user,id=n,hostfwd=tcp:127.0.0.1:0-:22",
		"-device", "virtio-net-pci,netdev=n,romfile=",
	}
	p := h.startPair(g, []*os.File{disk, lock})
	oracle, twin := open(p.oracle), open(p.twin)
	if slices.Contains(oracle, disk.Name()) || !slices.Contains(twin, disk.Name()) {
		t.Errorf("the disk: oracle %t, twin %t, want the twin alone",
			slices.Contains(oracle, disk.Name()), slices.Contains(twin, disk.Name()))
	}
	if !slices.Contains(oracle, lock.Name()) || !slices.Contains(twin, lock.Name()) {
		t.Error("both hold what the caller holds without naming it, such as a lock")
	}
	for _, f := range oracle {
		if strings.HasPrefix(f, "socket:") && slices.Contains(twin, f) {
			t.Errorf("both have %s", f)
		}
	}
	for command, args := range map[string]string{
		"human-monitor-command": `{"command-line":"cont"}`, "getfd": `{"fdname":"x"}`, "add-fd": "",
		"migrate":           `{"uri":"exec:cat"}`,
		"dump-guest-memory": `{"paging":false,"protocol":"file:x"}`, "pmemsave": `{"val":0,"size":1,"filename":"x"}`,
		"memsave":    `{"val":0,"size":1,"filename":"x"}`,
		"device_add": `{"driver":"pc-dimm"}`, "snapshot-save": `{}`, "set-action": `{"reboot":"reset"}`,
		"xen-save-devices-state": "",
	} {
		if got := p.do(t, command, args); !strings.Contains(got, "swtee: ") &&
			!strings.Contains(got, "not implemented") {
			t.Errorf("%s: %s", command, got)
		}
	}
	if got := p.do(t, "query-status", ""); !strings.Contains(got, "prelaunch") {
		t.Errorf("status %s", got)
	}
	if got := p.do(t, "qom-get", `{"path":"/objects/cgs0","property":"policy"}`); got != "1" {
		t.Errorf("the policy of the object is %s", got)
	}
	if got := p.do(t, "query-sev-capabilities", ""); !strings.Contains(got, `"cert-chain"`) {
		t.Errorf("capabilities: %s", got)
	}
	if got := p.do(t, "human-monitor-command", `{"command-line":"info sev"}`); !strings.Contains(
		got,
		"launch-secret",
	) {
		t.Errorf("info sev: %s", got)
	}
	if got := p.do(t, "human-monitor-command", `{"command-line":"info version"}`); !strings.Contains(got, "11.1") {
		t.Errorf("info version: %s", got)
	}
	p.do(t, "quit", "")
	p.code(t)
	waitNothing(t, h.work)
}

// open lists the files that a process has open.
func open(pid int) (names []string) {
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, f := range fds {
		if name, err := os.Readlink(f); err == nil {
			names = append(names, name)
		}
	}
	return names
}

// TestTwinStorm: many clients at once ask, and one of them lets the guest run; all are answered.
func TestTwinStorm(t *testing.T) {
	h := newHost(t).race()
	g := h.bare(qemus.Version(t, "11.1"))
	g.more = []string{"-qmp", "unix:" + filepath.Join(h.work, "second.sock") + ",server=on,wait=off"}
	p := h.startPair(g, nil)
	_ = p.qmp.Close() // a monitor has one client at a time, and there are two
	sockets := []string{"qmp.sock", "second.sock"}
	var all sync.WaitGroup
	var mu sync.Mutex
	answered := 0
	for i := range 20 {
		all.Go(func() {
			c, err := net.Dial("unix", filepath.Join(h.work, sockets[i%2]))
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			client := &pair{qmp: c, in: bufio.NewReader(c)}
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			if _, err := client.in.ReadString('\n'); err != nil {
				t.Error(err)
				return
			}
			client.do(t, "qmp_capabilities", "")
			for range 10 {
				for command, want := range map[string]string{
					"query-sev": "enabled", "query-status": "status", "query-sev-launch-measure": "data",
				} {
					if got := client.do(t, command, ""); !strings.Contains(got, want) {
						t.Errorf("%s: %s", command, got)
						return
					}
				}
			}
			if i == 10 {
				if got := client.do(t, "cont", ""); got != "{}" {
					t.Errorf("cont: %s", got)
				}
			}
			mu.Lock()
			answered++
			mu.Unlock()
		})
	}
	all.Wait()
	if answered != 20 {
		t.Errorf("%d of 20 clients were answered: %s", answered, p.out.String())
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	p.code(t)
	waitNothing(t, h.work)
}
