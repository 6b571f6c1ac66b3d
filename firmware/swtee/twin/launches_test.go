//go:build !quick

package twin

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/firmware/swtee/internal/front"
	"github.com/vmlatch/vmlatch/qmp"
)

// launch runs one guest of SEV without a kernel in this process, lets it run, and ends it.
func launch(t *testing.T, p *swtee.Platform, firmware string) {
	t.Helper()
	client, theirs, err := front.Socketpair()
	if err != nil {
		t.Fatal(err)
	}
	argv := []string{
		"qemu-system-x86_64", "-machine", "q35,confidential-guest-support=s0", "-accel", "kvm", "-cpu", "EPYC-Milan",
		"-object", "sev-guest,id=s0,cbitpos=51,reduced-phys-bits=1,policy=1", "-m", "64", "-bios", firmware,
		"-nodefaults", "-display", "none", "-S",
		"-chardev", fmt.Sprintf("socket,id=q,fd=%d", theirs), "-mon", "chardev=q,mode=control",
	}
	errs, err := os.CreateTemp(t.TempDir(), "stderr")
	if err != nil {
		t.Fatal(err)
	}
	defer errs.Close()
	fw := swtee.NewFirmware(p)
	type end struct {
		code int
		err  error
	}
	ended := make(chan end, 1)
	go func() {
		code, err := Run(context.Background(), Options{
			Argv: argv, Firmware: func() (*swtee.Firmware, error) { return fw, nil }, Stdout: errs, Stderr: errs,
		})
		ended <- end{code, err}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	said := func() string { b, _ := os.ReadFile(errs.Name()); return string(b) }
	c, err := qmp.NewConn(ctx, client, qmp.Options{})
	if err != nil {
		t.Fatalf("%v: %s", err, said())
	}
	if err := (qmp.Cont{}).Execute(ctx, c); err != nil {
		t.Fatalf("%v: %s", err, said())
	}
	if err := c.Execute(ctx, "quit", nil, nil); err != nil {
		t.Fatalf("%v: %s", err, said())
	}
	select {
	case e := <-ended:
		if e.code != 0 || e.err != nil {
			t.Fatalf("code %d, %v: %s", e.code, e.err, said())
		}
	case <-ctx.Done():
		t.Fatalf("it does not end: %s", said())
	}
	_ = c.Close()
}

// count tells what a process holds.
func count(t *testing.T) (fds, routines int, heap uint64) {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return len(list), runtime.NumGoroutine(), m.HeapAlloc
}

// TestFiftyLaunches: nothing is left behind in a process that launches again and again.
func TestFiftyLaunches(t *testing.T) {
	_, self, _, _ := runtime.Caller(0)
	firmware := filepath.Join(filepath.Dir(self), "../../../.cache/guest/OVMF.amdsev.fd")
	if _, err := os.Stat(firmware); err != nil {
		t.Skipf("%v: run make setup", err)
	}
	p, err := swtee.OpenPlatform(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	launch(t, p, firmware) // what is made once
	fds, routines, heap := count(t)
	for range 50 {
		launch(t, p, firmware)
	}
	var now, busy int
	var used uint64
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if now, busy, used = count(t); now <= fds && busy <= routines || time.Now().After(deadline) {
			break
		}
	}
	if now > fds || busy > routines || used > heap+8<<20 {
		t.Errorf("after 50 launches %d descriptors, %d goroutines, %d bytes; before %d, %d, %d",
			now, busy, used, fds, routines, heap)
	}
	if left := childrenOf(os.Getpid()); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
}

// childrenOf lists the processes that a process has.
func childrenOf(pid int) (list []string) {
	dirs, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, d := range dirs {
		if b, err := os.ReadFile(d); err == nil && strings.TrimSpace(string(b)) != "" {
			list = append(list, string(b))
		}
	}
	return list
}

// TestOracleThatCannotStart: a QEMU that does not exist, or has no such object, is what ends the
// launch, with its code.
func TestOracleThatCannotStart(t *testing.T) {
	p, err := swtee.OpenPlatform(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir := here(t, "fw")
	if err := os.WriteFile(filepath.Join(dir, "fw"), make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(program string) (int, error) {
		fw := swtee.NewFirmware(p)
		null, err := os.OpenFile(os.DevNull, unix.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		return Run(t.Context(), Options{
			Argv: []string{
				program, "-machine", "q35,confidential-guest-support=s0", "-object", "sev-guest,id=s0,nonsense=1",
				"-bios", filepath.Join(dir, "fw"),
			},
			Firmware: func() (*swtee.Firmware, error) { return fw, nil }, Stdout: null, Stderr: null,
		})
	}
	if code, err := run(filepath.Join(dir, "no-qemu")); code != 127 || err == nil {
		t.Errorf("no QEMU: code %d, %v, want 127", code, err)
	}
	if code, err := run("qemu-system-x86_64"); code != 1 || err != nil {
		t.Errorf("an object that QEMU refuses: code %d, %v, want its own 1", code, err)
	}
}
