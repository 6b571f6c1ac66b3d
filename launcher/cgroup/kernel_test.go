//go:build cgroups

// These tests do what they like with the kernel's control groups: they are built by the integration
// tests, and run in a guest that runs nothing else, and in a systemd that was booted for them.

package cgroup

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain is also a process that takes what it can get.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 {
		if take, ok := takers[os.Args[1]]; ok {
			_, _ = os.Stdin.Read(make([]byte, 1))
			take()
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

var takers = map[string]func(){
	"take-memory": func() {
		var all [][]byte
		for range 256 {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			all = append(all, b)
		}
		_ = all
	},
	"take-cpu": func() {
		for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		}
	},
	"take-pids": func() {
		for range 64 {
			cmd := exec.Command("/proc/self/exe", "take-nothing")
			in, _ := cmd.StdinPipe()
			if err := cmd.Start(); err != nil {
				if errors.Is(err, unix.EAGAIN) {
					os.Exit(11)
				}
				os.Exit(1)
			}
			defer in.Close()
		}
	},
	"take-nothing": func() {},
	"take-io": func() {
		fd, err := unix.Open("/dev/vda", unix.O_RDONLY|unix.O_DIRECT, 0)
		if err != nil {
			os.Exit(1)
		}
		b, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			os.Exit(1)
		}
		for i := range int64(4) {
			if n, err := unix.Pread(fd, b, i<<20); n != len(b) || err != nil {
				os.Exit(1)
			}
		}
	},
}

// taker is such a process, in a group.
type taker struct {
	*exec.Cmd
	in  io.WriteCloser
	dir string
}

func take(t *testing.T, p *Place, what string, l *Limits) *taker {
	t.Helper()
	x := &taker{Cmd: exec.Command("/proc/self/exe", what)}
	x.Stderr = os.Stderr
	err := p.Prepare(l)
	if err != nil {
		t.Fatal(err)
	}
	if x.in, err = x.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := x.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Process.Kill(); _ = x.Wait() })
	put := p.Put
	if p.scope { // the systemd of the tests may have no controllers, with which Put would find fault
		put = p.putInScope
	}
	if x.dir, err = put(t.Context(), "a-b", l, x.Process.Pid); err != nil {
		t.Fatal(err)
	}
	return x
}

// end lets it take, and is how it ended, and after what time.
func (x *taker) end() (syscall.WaitStatus, time.Duration) {
	begun := time.Now()
	_, _ = x.in.Write([]byte{1})
	_ = x.Wait()
	status, _ := x.ProcessState.Sys().(syscall.WaitStatus)
	return status, time.Since(begun)
}

// stat is a number of a file of the group.
func (x *taker) stat(t *testing.T, name, key string) int {
	t.Helper()
	f, err := os.Open(filepath.Join(x.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, _ := strings.Cut(s.Text(), " "); k == key {
			n, _ := strconv.Atoi(v)
			return n
		}
	}
	t.Fatalf("%s has no %s", name, key)
	return 0
}

// TestKernel: the kernel enforces each limit, and nothing is left when the process has ended.
func TestKernel(t *testing.T) {
	// A group that has processes, as in a container.
	const top = "/sys/fs/cgroup"
	if err := os.Mkdir(top+"/mine", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []file{
		{"cgroup.subtree_control", "+memory +cpu +pids +io"}, {"mine/cgroup.procs", "0"},
	} {
		if err := write(top, f); err != nil {
			t.Fatal(err)
		}
	}
	p, why := Find("/")
	if p == nil || p.String() != "a control group below /mine" || p.Lacks(&all) != "" {
		t.Fatalf("%v, %s", p, why)
	}
	gone := func(x *taker) {
		t.Helper()
		Remove(x.dir)
		if _, err := os.Stat(x.dir); err == nil || !strings.HasSuffix(x.dir, "/mine/vmlatch-a-b") {
			t.Errorf("%s is left: %v", x.dir, err)
		}
	}
	x := take(t, p, "take-memory", &Limits{Memory: 64 << 20})
	if err := (&Limits{Memory: 64 << 20}).holds(x.dir); err != nil {
		t.Error(err)
	}
	if err := (&Limits{PIDs: 5}).holds(x.dir); err == nil {
		t.Error("a limit that was not set holds")
	}
	if status, _ := x.end(); status.Signal() != unix.SIGKILL || x.stat(t, "memory.events", "oom_kill") < 1 {
		t.Errorf("memory: %v", status)
	}
	gone(x)
	if p, why = Find("/"); p == nil || p.own != "/mine" { // it has moved out of the way
		t.Fatalf("%v, %s", p, why)
	}
	x = take(t, p, "take-cpu", &Limits{CPU: 0.25})
	status, _ := x.end()
	if used := x.stat(t, "cpu.stat", "usage_usec"); status != 0 || used > 1_500_000 ||
		x.stat(t, "cpu.stat", "nr_throttled") == 0 {
		t.Errorf("CPU: %v, %d µs of 3 s", status, used)
	}
	gone(x)
	x = take(t, p, "take-pids", &Limits{PIDs: 24})
	if status, _ := x.end(); status.ExitStatus() != 11 {
		t.Errorf("processes: %v, want EAGAIN", status)
	}
	gone(x)
	x = take(t, p, "take-io", &Limits{IO: []IO{{Device: "254:0", Read: 1 << 20}}})
	if status, took := x.end(); status != 0 || took < 2*time.Second {
		t.Errorf("4 MiB at 1 MiB/s: %v after %v", status, took)
	}
	gone(x)
	if _, err := p.Put(t.Context(), "a-b", &Limits{IO: []IO{{Device: "99:99", Read: 1}}}, os.Getpid()); err == nil {
		t.Error("a device that is not there is bounded")
	} else if _, err := os.Stat(top + "/mine/vmlatch-a-b"); err == nil {
		t.Error("an attempt leaves a group")
	}
}

// TestScope: systemd makes a scope with the limits, which is gone with its process.
func TestScope(t *testing.T) {
	p, why := Find("/")
	if p == nil || !p.scope {
		t.Fatalf("%v, %s", p, why)
	}
	x := take(t, p, "take-nothing", &all)
	if !strings.HasSuffix(x.dir, `/vmlatch-a\x2db.scope`) {
		t.Errorf("it is in %s", x.dir)
	}
	shows := func() string {
		out, err := exec.Command("systemctl", "show", `vmlatch-a\x2db.scope`,
			"-p", "MemoryMax,CPUQuotaPerSecUSec,TasksMax,ActiveState").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	for _, want := range []string{
		"MemoryMax=1073741824", "CPUQuotaPerSecUSec=1.5", "TasksMax=64", "ActiveState=active",
	} {
		if said := shows(); !strings.Contains(said, want) {
			t.Errorf("%s, want %s", said, want)
		}
	}
	x.end()
	x = take(t, p, "take-nothing", &all) // at once: the first scope may be there still
	x.end()
	for end := time.Now().Add(10 * time.Second); !strings.Contains(shows(), "ActiveState=inactive"); {
		if time.Now().After(end) {
			t.Fatalf("it is left: %s", shows())
		}
		time.Sleep(50 * time.Millisecond)
	}
	if _, err := p.Put(t.Context(), "a-b", &all, 1<<22-1); err == nil {
		t.Error("a process that is not there is in a scope")
	}
}
