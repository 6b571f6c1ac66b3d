package confine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/integration/escape"
)

// prisoner is the first argument with which the test's own program plays a QEMU that a guest has
// taken over: it tries what comes behind it, and prints how each attempt ended.
const prisoner = "__prisoner"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "__stage":
			os.Exit(Run(os.Args[2:]))
		case prisoner:
			os.Exit(play(os.Args[2:]))
		}
	}
	os.Exit(m.Run())
}

func play(attempts []string) int {
	if err := json.NewEncoder(os.Stdout).Encode(escape.Try(attempts)); err != nil {
		return 1
	}
	return 0
}

// imprison runs attempts in a box, and returns how each ended.
func imprison(t *testing.T, b *Box, try string, attempts ...string) (map[string]string, Report) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	files, err := Program(self)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b.Allow(f.Access, f.Path)
	}
	b.Allow(Read, "/proc", "/sys/devices/system")
	out, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	p, err := b.Prepare([]string{self, "__stage"}, append([]string{self, prisoner}, attempts...), 3, try, false)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	attr := &syscall.ProcAttr{Dir: "/", Env: os.Environ(), Files: []uintptr{0, out.Fd(), 2}}
	attr.Sys = &syscall.SysProcAttr{}
	for _, f := range p.Files {
		attr.Files = append(attr.Files, f.Fd())
	}
	p.Attributes(attr.Sys)
	pid, err := syscall.ForkExec(p.Argv[0], p.Argv, attr)
	if err != nil && Refused(err) {
		t.Skipf("no namespaces here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	report, reportErr := p.Await(t.Context())
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil {
		t.Fatal(err)
	}
	if reportErr != nil {
		t.Fatal(reportErr)
	}
	b2, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]string{}
	if err := json.NewDecoder(bytes.NewReader(b2)).Decode(&said); err != nil {
		t.Fatalf("%v: %s (status %v)", err, b2, status)
	}
	return said, report
}

// world is what a taken-over QEMU would like to reach, besides what is its own.
func world(t *testing.T) (dir, own string, attempts []string) {
	t.Helper()
	dir = t.TempDir()
	own = filepath.Join(dir, "own")
	other := filepath.Join(dir, "other")
	for _, d := range []string{own, other} {
		if err := os.Mkdir(d, 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d, "file"), []byte("secret"), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(other, "qmp.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tcp.Close() })
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = udp.Close() })
	sleeper := exec.Command("sleep", "600")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sleeper.Process.Kill(); _ = sleeper.Wait() })
	pid := strconv.Itoa(sleeper.Process.Pid)
	return dir, own, []string{
		"read:" + filepath.Join(other, "file"), "write:" + filepath.Join(other, "new"),
		"remove:" + filepath.Join(other, "file"),
		"list:" + other, "list:" + dir, "read:/etc/passwd", "write:/tmp/escaped-" + pid, "write:/usr/escaped-" + pid,
		"unix:" + socket, "tcp:" + tcp.Addr().String(), "udp:" + udp.LocalAddr().String(), "kill:" + pid, "look:" + pid,
		"read:/proc/" + pid + "/root" + filepath.Join(other, "file"), "write:/proc/sys/kernel/core_pattern",
		"limit:" + pid, "mode:/dev/full", "modes:", "lease:", "vsock:",
	}
}

// TestPrison is a box with all that a host can have, and others that lack something: what each
// lets out is what its walls do not cover, and nothing else.
func TestPrison(t *testing.T) {
	host := Look("/")
	for name, c := range map[string]struct {
		namespaces []string
		landlock   int
		networked  bool
		out        []string // kinds of attempts that may succeed
	}{
		"all":                {[]string{User, Mount, Network, IPC}, host.Landlock, false, nil},
		"namespaces alone":   {[]string{User, Mount, Network, IPC}, 0, false, []string{"kill"}},
		"rules alone":        {nil, host.Landlock, false, []string{"unix", "udp"}},
		"networked":          {[]string{User, Mount, IPC}, host.Landlock, true, []string{"udp", "tcp"}},
		"first version":      {[]string{User, Mount, Network, IPC}, min(1, host.Landlock), false, []string{"kill"}},
		"rules of version 4": {[]string{User, Network}, min(4, host.Landlock), false, []string{"unix", "kill"}},
	} {
		t.Run(name, func(t *testing.T) {
			if len(c.namespaces) > 0 && host.NoNamespaces != "" {
				t.Skipf("no namespaces here: %s", host.NoNamespaces)
			}
			if c.landlock == 0 && len(c.namespaces) == 0 {
				t.Skip("no Landlock here")
			}
			_, own, attempts := world(t)
			b := &Box{Namespaces: c.namespaces, Landlock: c.landlock, Networked: c.networked}
			b.Allow(Write, own)
			may := []string{"read:" + filepath.Join(own, "file"), "write:" + filepath.Join(own, "new")}
			said, report := imprison(t, b, strings.TrimPrefix(attempts[0], "read:"), append(attempts, may...)...)
			if report.Refused == "" {
				t.Errorf("nothing was proven: %+v", report)
			}
			for _, a := range may {
				if said[a] != escape.Done {
					t.Errorf("%s: %s, want it done", a, said[a])
				}
			}
			for _, a := range attempts {
				kind, _, _ := strings.Cut(a, ":")
				if out := said[a] == escape.Done; out != contains(c.out, kind) {
					t.Errorf("%s: %s", a, said[a])
				}
			}
		})
	}
}

func contains(list []string, s string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}

// TestOpenPrison: a box that does not keep in what it says is not started.
func TestOpenPrison(t *testing.T) {
	host := Look("/")
	if host.Landlock == 0 {
		t.Skip("no Landlock here")
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "record")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	self, _ := os.Executable()
	b := &Box{Landlock: host.Landlock}
	b.Allow(Execute, "/")
	p, err := b.Prepare([]string{self, "__stage"}, []string{self, prisoner}, 3, file, false)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	attr := &syscall.ProcAttr{Files: []uintptr{0, 2, 2, p.Files[0].Fd(), p.Files[1].Fd()}}
	pid, err := syscall.ForkExec(p.Argv[0], p.Argv, attr)
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Await(t.Context())
	_, _ = syscall.Wait4(pid, nil, 0, nil)
	if err == nil || !strings.Contains(err.Error(), "lets it open "+file) {
		t.Errorf("%v, want it refused", err)
	}
}

// TestStageThatHangs: a start waits for its stage for as long as it is told, and no longer.
func TestStageThatHangs(t *testing.T) {
	b := &Box{}
	p, err := b.Prepare([]string{"/bin/sleep"}, []string{"/bin/true"}, 3, "", false)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	attr := &syscall.ProcAttr{Files: []uintptr{0, 2, 2, p.Files[0].Fd(), p.Files[1].Fd()}}
	pid, err := syscall.ForkExec("/bin/sleep", []string{"sleep", "600"}, attr)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Await(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want it given up", err)
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
	_, _ = syscall.Wait4(pid, nil, 0, nil)
}
