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

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/integration/escape"
)

// prisoner is the first argument with which the test's own program plays a QEMU that a guest has
// taken over: it tries what comes behind it, and prints how each attempt ended.
const prisoner = "__prisoner"

const numbered = "__numbered"

// inMemory is the name of a file in memory that a prisoner has.
const inMemory = "/proc/self/fd/3"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "__stage":
			os.Exit(Run(os.Args[2:]))
		case numbered: // it writes the number of each descriptor to it
			n, _ := strconv.Atoi(os.Args[2])
			for fd := 3; fd < n; fd++ {
				if _, err := syscall.Write(fd, []byte(strconv.Itoa(fd))); err != nil {
					os.Exit(1)
				}
			}
			os.Exit(0)
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
	stage, err := Fork([]string{self, "__stage"}, b.Namespaces, false)
	if err != nil && Refused(err) {
		t.Skipf("no namespaces here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer stage.Close()
	fd, err := unix.MemfdCreate("copy", unix.MFD_CLOEXEC) // as QEMU gets a kernel
	if err != nil {
		t.Fatal(err)
	}
	memory := os.NewFile(uintptr(fd), "copy")
	defer memory.Close()
	argv := append([]string{self, prisoner}, attempts...)
	if err := stage.Enter(b, argv, []*os.File{os.Stdin, out, os.Stderr, memory}, try); err != nil {
		stage.Kill()
		t.Fatal(err)
	}
	report, reportErr := stage.Await(t.Context())
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(stage.PID, &status, 0, nil); err != nil {
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
	t.Setenv(variable, "secret")
	abstract := "@" + socket
	l2, err := net.Listen("unix", abstract)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l2.Close() })
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
		"ring:", "traceme:", "memory:", "pidfd:", "x32:", "core:", "env:" + variable, "abstract:" + abstract,
	}
}

// variable is one of the launcher's environment that is not for what it starts.
const variable = "VMLATCH_TEST_TOKEN"

// TestPrison is a box with all that a host can have, and others that lack something: what each
// lets out is what its walls do not cover, and nothing else.
func TestPrison(t *testing.T) {
	host := Look("/")
	all := []string{User, Mount, Network, IPC}
	for name, c := range map[string]struct {
		namespaces []string
		landlock   int
		networked  bool
		out        []string // kinds of attempts that may succeed
	}{
		"all":                {append(all, PID), host.Landlock, false, nil},
		"namespaces alone":   {append(all, PID), 0, false, nil},
		"not of processes":   {all, 0, false, []string{"kill"}},
		"rules alone":        {nil, host.Landlock, false, []string{"unix", "udp"}},
		"networked":          {[]string{User, Mount, IPC}, host.Landlock, true, []string{"udp", "tcp"}},
		"first version":      {all, min(1, host.Landlock), false, []string{"kill"}},
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
			may := []string{
				"read:" + filepath.Join(own, "file"), "write:" + filepath.Join(own, "new"), "read:" + inMemory,
			}
			if host.Landlock < 6 && !b.Has(Network) {
				c.out = append(c.out, "abstract")
			}
			said, report := imprison(t, b, strings.TrimPrefix(attempts[0], "read:"), append(attempts, may...)...)
			if report.Refused == "" || (report.Ruled != "") != (c.landlock > 0) {
				t.Errorf("not all was proven: %+v", report)
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
	stage, err := Fork([]string{self, "__stage"}, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	defer stage.Kill()
	err = stage.Enter(b, []string{self, prisoner}, []*os.File{os.Stdin, os.Stderr, os.Stderr}, file)
	if err == nil {
		_, err = stage.Await(t.Context())
	}
	if err == nil || !strings.Contains(err.Error(), "lets it open "+file) {
		t.Errorf("%v, want it refused", err)
	}
}

// TestStageThatHangs: a start waits for its stage for as long as it is told, and no longer.
func TestStageThatHangs(t *testing.T) {
	stage, err := Fork([]string{"/bin/sh", "-c", "sleep 600", "sh"}, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	defer stage.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := stage.Enter(&Box{}, []string{"/bin/true"}, nil, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := stage.Await(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want it given up", err)
	}
}

// TestDescriptors: a program gets as many descriptors as it is given, each under its number.
func TestDescriptors(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := []*os.File{os.Stdin, os.Stderr, os.Stderr}
	for i := len(files); i < 2*maxRights; i++ {
		f, err := os.Create(filepath.Join(dir, strconv.Itoa(i)))
		if err != nil {
			t.Skip(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	early := ForkEarly([]string{self, "__stage"}, Host{NoNamespaces: "not needed"})
	defer early.Close()
	stage := early.Take(&Box{})
	if stage == nil || early.Take(&Box{}) != nil {
		t.Fatal("an early stage is there once")
	}
	defer stage.Close()
	if err := stage.Enter(&Box{}, []string{self, numbered, strconv.Itoa(len(files))}, files, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := stage.Await(t.Context()); err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(stage.PID, &status, 0, nil); err != nil || status.ExitStatus() != 0 {
		t.Errorf("%v, status %v", err, status)
	}
	for _, f := range files[3:] {
		if b, err := os.ReadFile(f.Name()); err != nil || string(b) != filepath.Base(f.Name()) {
			t.Errorf("descriptor %s got %q, %v", filepath.Base(f.Name()), b, err)
		}
	}
}

// TestEarlyThatIsNotTaken: a stage that no start takes is gone, and one with other namespaces than
// a box's is not taken.
func TestEarlyThatIsNotTaken(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	early := ForkEarly([]string{self, "__stage"}, Host{NoNamespaces: "not needed"})
	if early == nil {
		t.Fatal("it is not forked")
	}
	pid := early.stage.PID
	if early.Take(&Box{Namespaces: []string{User, PID}}) != nil {
		t.Error("it is taken for a box with namespaces that it does not have")
	}
	early.Close()
	early.Close()
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d is left: %v", pid, err)
	}
	if none := (*Early)(nil); none.Take(&Box{}) != nil {
		t.Error("there is one where none was forked")
	} else {
		none.Close()
	}
}
