package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// psSchema is the schema that vmlatch itself publishes.
func (h *host) psSchema() *jsonschema.Schema {
	h.t.Helper()
	_, text, _ := strings.Cut(h.run("vmlatch", "help", "ps-json"), "\n\n")
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		h.t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("ps.json", doc); err != nil {
		h.t.Fatal(err)
	}
	s, err := c.Compile("ps.json")
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

// ps runs ps --json, validates what it prints, and returns the states by name.
func (h *host) ps(s *jsonschema.Schema, args ...string) map[string]string {
	h.t.Helper()
	out := h.run("vmlatch", append([]string{"ps", "--json"}, args...)...)
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(out))
	if err == nil {
		err = s.Validate(v)
	}
	if err != nil {
		h.t.Errorf("%v\n%s", err, out)
	}
	var list struct {
		VMs []struct{ Name, Status, State string }
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		h.t.Fatal(err)
	}
	states := map[string]string{}
	for _, v := range list.VMs {
		states[v.Name] = v.Status + " " + v.State
	}
	return states
}

// TestPSJSON: what ps prints about VMs in all their states conforms to its schema.
func TestPSJSON(t *testing.T) {
	h := newHost(t)
	schema := h.psSchema()
	h.prepareUnattended()
	h.session()
	h.write("vm.toml", smallSpec)
	if s := h.ps(schema); len(s) != 0 {
		t.Errorf("at first: %v", s)
	}
	h.run("vmlatch", "start", "guest.toml", "--emulate", "--hold")
	h.run("vmlatch", "measure", "guest")
	h.run("vmlatch", "start", "vm.toml")
	for _, name := range []string{"ended", "stopped"} {
		h.run("vmlatch", "start", "vm.toml", "--name", name)
	}
	h.run("vmlatch", "stop", "stopped", "--now")
	starting := h.command("vmlatch", "start", "vm.toml", "--name", "starting", "--stop-at", "connect")
	if err := starting.Start(); err != nil {
		t.Fatal(err)
	}
	waitStopped(t, starting.Process.Pid)
	for pid := range processes("guest=ended") {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	within(t, "a killed VM is not seen to have ended", func() bool {
		return h.ps(schema, "--all")["ended"] == "ended stopped"
	})
	got := h.ps(schema, "--all")
	for name, want := range map[string]string{
		"guest":    "alive measured",
		"vm":       "alive running",
		"ended":    "ended stopped",
		"stopped":  "ended stopped",
		"starting": "launching launching",
	} {
		if got[name] != want {
			t.Errorf("%s: %q, want %q", name, got[name], want)
		}
	}
	_ = starting.Process.Kill()
	_ = starting.Wait()
}

// TestHundredVMs: no VM has a process besides QEMU, and ps shows them all.
func TestHundredVMs(t *testing.T) {
	h := newHost(t).race()
	schema := h.psSchema()
	const n = 100
	if err := os.Mkdir(filepath.Join(h.work, "vms"), 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		h.write(fmt.Sprintf("vms/vm%d.toml", i), smallSpec)
	}
	h.run("vmlatch", "start", "--all", "vms")
	started := time.Now()
	states := h.ps(schema)
	t.Logf("ps of %d VMs, built with -race: %v", n, time.Since(started))
	running := 0
	for _, s := range states {
		if s == "alive running" {
			running++
		}
	}
	if running != n {
		t.Errorf("%d of %d run: %v", running, n, states)
	}
	qemus, others := 0, []string{}
	for _, line := range processes(h.work + "/") {
		if strings.HasPrefix(filepath.Base(strings.Fields(line)[0]), "qemu-system") {
			qemus++
		} else {
			others = append(others, line)
		}
	}
	if qemus != n || len(others) > 0 {
		t.Errorf("%d QEMUs, want %d; other processes: %v", qemus, n, others)
	}
	h.run("vmlatch", "stop", "--all", "--now", "--jobs", "8")
	h.clearEnded()
	waitNothing(t, h.work)
}

// TestInterruptedStop: a stop that is interrupted reports what it has done already.
func TestInterruptedStop(t *testing.T) {
	h := newHost(t).race()
	h.write("vm.toml", smallSpec)
	h.run("vmlatch", "start", "vm.toml")
	for _, command := range []string{"stop", "restart"} {
		cmd := h.command("vmlatch", command, "vm", "--timeout", "60s")
		var out bytes.Buffer
		cmd.Stderr = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		within(t, "it does not stop", func() bool { return strings.Contains(h.run("vmlatch", "ps"), "stopping") })
		time.Sleep(300 * time.Millisecond)
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 130 {
			t.Errorf("%s: code %d, want 130", command, code)
		}
		h.shows(command, out.String(), "was asked to power off, and not waited for")
	}
}

// TestKeyOfQEMU: keyctl finds the key by its handle with QEMU's credentials, and with
// no others.
func TestKeyOfQEMU(t *testing.T) {
	needProgram(t, "keyctl")
	h := newHost(t)
	// A QEMU that first records what it can see with its own credentials.
	h.write("qemu", `#!/bin/sh
case "$*" in *-S*) { keyctl show @s; keyctl list @s; } > "`+h.work+`/seen" 2>&1 ;; esac
exec qemu-system-x86_64 "$@"
`)
	if err := os.Chmod(filepath.Join(h.work, "qemu"), 0o700); err != nil {
		t.Fatal(err)
	}
	h.write("keyed.toml", "qemu = \"./qemu\"\n"+mktmeSpec)
	h.run("vmlatch", "start", "keyed.toml", "--emulate")
	seen, err := os.ReadFile(filepath.Join(h.work, "seen"))
	if err != nil {
		t.Fatal(err)
	}
	key := h.keyOf()
	if !strings.Contains(string(seen), fmt.Sprint(key)) || !strings.Contains(string(seen), "user: vmlatch:keyed") {
		t.Errorf("with QEMU's credentials, key %d is not among:\n%s", key, seen)
	}
	for _, args := range [][]string{
		{"describe", fmt.Sprint(key)},
		{"print", fmt.Sprint(key)},
		{"link", fmt.Sprint(key), "@u"},
	} {
		if out, err := exec.Command("keyctl", args...).CombinedOutput(); err == nil {
			t.Errorf("without them, keyctl %v: %s", args, out)
		}
	}
	h.run("vmlatch", "stop", "keyed", "--now")
	within(t, "the key outlives its VM", func() bool { return !keyExists(key) })
}

// consolePeer takes the place of QEMU's end of a VM's console, so that a test reads and
// writes every byte; each call of accept waits for the next client.
func (h *host) consolePeer(name string) (accept func() net.Conn) {
	h.t.Helper()
	socket := filepath.Join(h.work, "run", name, "console.sock")
	if err := os.Remove(socket); err != nil {
		h.t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = l.Close() })
	return func() net.Conn {
		h.t.Helper()
		_ = l.(*net.UnixListener).SetDeadline(time.Now().Add(20 * time.Second))
		c, err := l.Accept()
		if err != nil {
			h.t.Fatal(err)
		}
		return c
	}
}

// TestConsole: a terminal's bytes pass unchanged in both directions; Ctrl-] restores
// the terminal; a window's size is typed on demand; there is one client at a time.
func TestConsole(t *testing.T) {
	h := newHost(t).race()
	h.write("vm.toml", smallSpec)
	h.run("vmlatch", "start", "vm.toml", "--hold")
	peer := h.consolePeer("vm")
	master, tty, err := pty.Open()
	if err != nil {
		t.Skip(err)
	}
	defer master.Close()
	defer tty.Close()
	if err := pty.Setsize(master, &pty.Winsize{Rows: 40, Cols: 120}); err != nil {
		t.Fatal(err)
	}
	before, err := term.GetState(int(tty.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	cmd := h.command("vmlatch", "console", "vm", "--resize")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	shown := make(chan string, 64)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			if err != nil {
				return
			}
			shown <- string(buf[:n])
		}
	}()
	screen := ""
	see := func(want string) {
		t.Helper()
		for end := time.After(20 * time.Second); !strings.Contains(screen, want); {
			select {
			case s := <-shown:
				screen += s
			case <-end:
				t.Fatalf("the terminal shows %q, want %q in it", screen, want)
			}
		}
	}
	see("Ctrl-] detaches")
	guest := peer()
	defer guest.Close()
	hear := func(want string) {
		t.Helper()
		got := make([]byte, len(want))
		_ = guest.SetReadDeadline(time.Now().Add(20 * time.Second))
		for n := 0; n < len(want); {
			m, err := guest.Read(got[n:])
			if n += m; err != nil {
				t.Fatalf("the guest hears %q, %v; want %q", got[:n], err, want)
			}
		}
		if string(got) != want {
			t.Fatalf("the guest hears %q, want %q", got, want)
		}
	}
	hear(" stty rows 40 cols 120\r")
	if err := pty.Setsize(master, &pty.Winsize{Rows: 50, Cols: 90}); err != nil {
		t.Fatal(err)
	}
	hear(" stty rows 50 cols 90\r")
	if _, err := master.WriteString("ls\x03\x1b[A\r"); err != nil {
		t.Fatal(err)
	}
	hear("ls\x03\x1b[A\r") // Ctrl-C is the guest's
	if _, err := guest.Write([]byte("\x1b[31mred\x1b[0m\r\n")); err != nil {
		t.Fatal(err)
	}
	see("\x1b[31mred\x1b[0m\r\n")
	h.shows("a second client", h.fails("", "console", "vm"), "another client is attached")
	if _, err := master.WriteString("x\x1d"); err != nil {
		t.Fatal(err)
	}
	hear("x")
	if err := cmd.Wait(); err != nil {
		t.Errorf("detached: %v", err)
	}
	see("detached from vm")
	after, err := term.GetState(int(tty.Fd()))
	if err != nil || fmt.Sprint(*after) != fmt.Sprint(*before) {
		t.Errorf("the terminal is left as %v, was %v: %v", after, before, err)
	}

	// One can detach from a guest that does not listen.
	deaf := h.command("vmlatch", "console", "vm", "--resize")
	deaf.Stdin, deaf.Stdout, deaf.Stderr = tty, tty, tty
	deaf.SysProcAttr = cmd.SysProcAttr
	if err := deaf.Start(); err != nil {
		t.Fatal(err)
	}
	silent := peer()
	screen = ""
	see("attached to vm")
	for range 300 {
		if _, err := master.WriteString(strings.Repeat("x", 1000)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := master.WriteString("\x1d"); err != nil {
		t.Fatal(err)
	}
	see("detached from vm")
	if err := deaf.Wait(); err != nil {
		t.Errorf("detached from a guest that does not listen: %v", err)
	}
	_ = silent.Close()

	// Without a terminal the guest's escape sequences are printed as text.
	piped := h.command("vmlatch", "console", "vm")
	var out bytes.Buffer
	piped.Stdout = &out
	in, err := piped.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := piped.Start(); err != nil {
		t.Fatal(err)
	}
	again := peer()
	_, _ = again.Write([]byte("\x1b]0;title\x07text\r\n"))
	_ = again.Close()
	_ = in.Close()
	const want = `\x1b]0;title\x07text` + "\n"
	if err := piped.Wait(); err != nil || out.String() != want {
		t.Errorf("%v, %q, want %q", err, out.String(), want)
	}
}
