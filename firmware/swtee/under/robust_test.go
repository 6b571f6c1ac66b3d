//go:build !quick

package under

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/integration/qemus"
)

// storm stops and continues every thread of a process again and again: each
// signal interrupts a system call that can be interrupted.
func storm(ctx context.Context, pid int) {
	for ctx.Err() == nil {
		_ = unix.Kill(pid, unix.SIGSTOP)
		_ = unix.Kill(pid, unix.SIGCONT)
		time.Sleep(200 * time.Microsecond)
	}
}

// TestSignals launches under a storm of signals, with and without the kernel's
// help (SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, Linux 5.19): no command may take
// place twice.
func TestSignals(t *testing.T) {
	firmware := guestFile(t, "OVMF.amdsev.fd")
	want := predict(t, firmware, "", "", "")
	for name, interruptible := range map[string]bool{"killable": false, "interruptible": true} {
		t.Run(name, func(t *testing.T) {
			qemus.Each(t, "7.2", func(t *testing.T, qemu string) {
				for range 5 {
					ctx, stop := context.WithCancel(t.Context())
					u := fake(Options{interruptible: interruptible})
					u.Started = func(pid int) { go storm(ctx, pid) }
					r := start(t, qemu, options{under: u, args: sevArgs(firmware, "policy=1")}).up()
					if got := r.digest(); got != hexString(want[:]) {
						t.Errorf("digest %s, want %x", got, want)
					}
					checkAttestation(t, r, want, 1)
					stop()
					r.quit()
				}
			})
		})
	}
}

// TestThreads launches with many threads that come and go, under QEMU's own
// system call filter.
func TestThreads(t *testing.T) {
	firmware := guestFile(t, "OVMF.amdsev.fd")
	want := predict(t, firmware, "", "", "")
	qemus.Each(t, "7.2", func(t *testing.T, qemu string) {
		args := append(sevArgs(firmware, "policy=1"), "-smp", "8",
			"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
		for i := range 4 {
			args = append(args, "-object", "iothread,id=io"+strconv.Itoa(i))
		}
		r := startFake(t, qemu, args).up()
		if got := r.digest(); got != hexString(want[:]) {
			t.Errorf("digest %s, want %x", got, want)
		}
		r.execute("cont", nil, nil)
		r.execute("stop", nil, nil)
		r.execute("system_reset", nil, nil)
		r.quit()
	})
}

// TestWithoutCPUIDFaulting: on a processor that cannot trap CPUID, like most AMD
// processors, the encryption bit becomes the one that QEMU will see.
func TestWithoutCPUIDFaulting(t *testing.T) {
	firmware := guestFile(t, "OVMF.amdsev.fd")
	want := predict(t, firmware, "", "", "")
	qemus.Each(t, "7.2", func(t *testing.T, qemu string) {
		u := fake(Options{noCPUIDFaulting: true})
		r := start(t, qemu, options{under: u, args: sevArgs(firmware, "policy=1")}).up()
		if got := r.digest(); got != hexString(want[:]) {
			t.Errorf("digest %s, want %x", got, want)
		}
		if !strings.Contains(r.log.String(), "cannot trap CPUID") {
			t.Error("the changed command line is not mentioned")
		}
		r.quit()
	})
}

// TestKilledWhileTraced kills QEMU while it is attached.
func TestKilledWhileTraced(t *testing.T) {
	if !newSupervisor(Options{}).trapsCPUID {
		t.Skip("this processor cannot trap CPUID, the only reason to trace QEMU on a fake KVM")
	}
	firmware := guestFile(t, "OVMF.amdsev.fd")
	u := fake(Options{})
	u.attached = func(pid int) { _ = unix.Kill(pid, unix.SIGKILL) }
	r := start(t, qemus.Newest(t), options{under: u, args: sevArgs(firmware)})
	r.wait()
	if r.code != 128+int(unix.SIGKILL) || r.err != nil {
		t.Errorf("code %d, %v", r.code, r.err)
	}
}

// TestKilled kills QEMU at other moments.
func TestKilled(t *testing.T) {
	firmware := guestFile(t, "OVMF.amdsev.fd")
	for _, ms := range []time.Duration{0, 1, 5, 20, 40} {
		delay := ms * time.Millisecond
		u := fake(Options{})
		u.Started = func(pid int) { time.AfterFunc(delay, func() { _ = unix.Kill(pid, unix.SIGKILL) }) }
		r := start(t, qemus.Newest(t), options{under: u, args: sevArgs(firmware)})
		r.wait()
		if r.code != 128+int(unix.SIGKILL) || r.err != nil {
			t.Errorf("after %v: code %d, %v", delay, r.code, r.err)
		}
	}
}

// TestContextEnds asks QEMU to end.
func TestContextEnds(t *testing.T) {
	r := startFake(t, qemus.Newest(t), sevArgs(guestFile(t, "OVMF.amdsev.fd"))).up()
	r.cancel()
	r.wait()
	if r.code != 0 || r.err != nil {
		t.Errorf("code %d, %v", r.code, r.err)
	}
}

// TestGuestThatCannotExecute: the fake KVM lets QEMU stop, reset and end a guest
// that makes no progress.
func TestGuestThatCannotExecute(t *testing.T) {
	qemus.Each(t, "7.2", func(t *testing.T, qemu string) {
		r := startFake(t, qemu, []string{"-machine", "q35", "-smp", "2"}).up()
		for range 5 {
			r.execute("cont", nil, nil)
			time.Sleep(10 * time.Millisecond)
			r.execute("stop", nil, nil)
		}
		r.quit()
	})
}

// TestHundredLaunches in a row, all alike.
func TestHundredLaunches(t *testing.T) {
	firmware := guestFile(t, "OVMF.amdsev.fd")
	want := predict(t, firmware, "", "", "")
	qemu := qemus.Newest(t)
	for i := range 100 {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			r := startFake(t, qemu, sevArgs(firmware, "policy=1")).up()
			if got := r.digest(); got != hexString(want[:]) {
				t.Errorf("digest %s, want %x", got, want)
			}
			r.quit()
		})
	}
}

// TestNothingLeft: a launch leaves neither descriptors nor threads in this process.
func TestNothingLeft(t *testing.T) {
	firmware := guestFile(t, "OVMF.amdsev.fd")
	qemu := qemus.Newest(t)
	launch := func() {
		t.Run("launch", func(t *testing.T) {
			startFake(t, qemu, sevArgs(firmware, "policy=1")).up().quit()
		})
	}
	count := func() (files, threads int) {
		f, _ := os.ReadDir("/proc/self/fd")
		th, _ := os.ReadDir("/proc/self/task")
		return len(f), len(th)
	}
	launch() // the runtime's own files and threads
	files, threads := count()
	for range 20 {
		launch()
	}
	time.Sleep(50 * time.Millisecond)
	if f, th := count(); f > files+2 || th > threads+6 {
		t.Errorf("%d descriptors and %d threads became %d and %d", files, threads, f, th)
	}
}

// TestFaults: QEMU encounters every failure that its launcher may have to explain.
func TestFaults(t *testing.T) {
	firmware := guestFile(t, "OVMF.amdsev.fd")
	sevGuest, esGuest := sevArgs(firmware, "policy=1"), sevArgs(firmware, "policy=5")
	snpGuest, td := snpArgs(firmware), tdxArgs(firmware)
	for _, c := range []struct {
		fault, from string
		args        []string
		want        string // QEMU's words
	}{
		{"INIT=EBUSY", "7.2", sevGuest, "failed to initialize ret=-16 fw_error=0"},
		{"ES_INIT=ENOMEM", "7.2", esGuest, "failed to initialize ret=-12 fw_error=0"},
		{"PLATFORM_STATUS=INVALID_PLATFORM_STATE", "7.2", sevGuest, "failed to get platform status ret=-1 fw_error='1"},
		{"LAUNCH_START=RESOURCE_LIMIT", "7.2", sevGuest, "LAUNCH_START ret=1 fw_error=23"},
		{"LAUNCH_START=reset", "7.2", sevGuest, "LAUNCH_START ret=1 fw_error=16"},
		{"LAUNCH_UPDATE_DATA=INVALID_LENGTH", "7.2", sevGuest, "LAUNCH_UPDATE ret=-5 fw_error=4"},
		{"LAUNCH_UPDATE_VMSA=reset", "7.2", esGuest, "LAUNCH_UPDATE_VMSA ret=-5 fw_error=16"},
		{"INIT2=EBUSY", "10.0", snpGuest, "failed to initialize ret=-16 fw_error=0"},
		{"SNP_LAUNCH_START=RESOURCE_LIMIT", "10.0", snpGuest, "SNP_LAUNCH_START ret=-5 fw_error=23"},
		{"CREATE_GUEST_MEMFD=ENOMEM", "10.0", snpGuest, "Error creating KVM guest_memfd: Cannot allocate memory"},
		{"TDX_CAPABILITIES=EIO", "11.1", td, "KVM_TDX_CAPABILITIES"},
		{"TDX_INIT_VM=EINVAL", "11.1", td, "KVM_TDX_INIT_VM failed"},
	} {
		t.Run(c.fault, func(t *testing.T) {
			qemus.Each(t, c.from, func(t *testing.T, qemu string) {
				r := startFake(t, qemu, c.args, c.fault)
				if r.conn != nil {
					t.Fatal("QEMU started")
				}
				if r.code != 1 || !strings.Contains(r.said(), c.want) {
					t.Errorf("code %d, want 1 and %q", r.code, c.want)
				}
				commands := r.report().Commands
				i := slices.IndexFunc(commands, func(c swtee.CommandRecord) bool { return c.Status != "SUCCESS" })
				if i < 0 {
					t.Fatalf("the report does not show the fault: %+v", commands)
				}
				text := commands[i].Error
				if !strings.Contains(c.fault, "reset") && !strings.Contains(text, "injected fault") {
					t.Errorf("error in the report %q, want an injected fault", text)
				}
			})
		})
	}
}

// TestSNPFaultsAtRelease: QEMU launches SNP guests only when they are released.
func TestSNPFaultsAtRelease(t *testing.T) {
	firmware := guestFile(t, "OVMF.amdsev.fd")
	for fault, want := range map[string]string{
		"SNP_LAUNCH_UPDATE:3=INVALID_PARAM": "SNP_LAUNCH_UPDATE ret=-5 fw_error=22",
		"SNP_LAUNCH_UPDATE=reset":           "SNP_LAUNCH_UPDATE ret=-5 fw_error=16",
		"SNP_LAUNCH_FINISH=BAD_SIGNATURE":   "SNP_LAUNCH_FINISH ret=-5 fw_error=10",
	} {
		t.Run(fault, func(t *testing.T) {
			qemus.Each(t, "10.0", func(t *testing.T, qemu string) {
				r := startFake(t, qemu, snpArgs(firmware), fault).up()
				_ = r.conn.Execute(r.ctx(), "cont", nil, nil)
				r.wait()
				if r.code != 1 || !strings.Contains(r.said(), want) {
					t.Errorf("code %d, want 1 and %q", r.code, want)
				}
			})
		})
	}
}

// TestLatency: QEMU waits for a slow platform.
func TestLatency(t *testing.T) {
	began := time.Now()
	args := sevArgs(guestFile(t, "OVMF.amdsev.fd"))
	r := startFake(t, qemus.Newest(t), args, "LAUNCH_MEASURE=delay:700ms").up()
	if took := time.Since(began); took < 700*time.Millisecond {
		t.Errorf("started in %v, want at least 700ms", took)
	}
	r.quit()
}

// TestForkedQEMU: a script forks QEMU, which in the end is killed while it is attached.
func TestForkedQEMU(t *testing.T) {
	script := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"+qemus.Newest(t)+" \"$@\"\nexit $?\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, object := range []string{"cgs0", "unused"} { // the second is never asked about
		args := sevArgs(guestFile(t, "OVMF.amdsev.fd"))
		args[len(args)-1] = strings.Replace(args[len(args)-1], "id=cgs0", "id="+object, 1)
		if object != "cgs0" {
			args[1] = "q35"
		}
		r := startFake(t, script, args).up()
		r.execute("query-status", nil, nil)
		r.quit()
	}
	if !newSupervisor(Options{}).trapsCPUID {
		return // nothing is attached on this processor
	}
	name := "forked-" + strconv.Itoa(os.Getpid())
	u := fake(Options{})
	u.attached = func(int) { _ = exec.Command("pkill", "-9", "-f", "name "+name).Run() }
	r := start(t, script, options{under: u, args: append(sevArgs(guestFile(t, "OVMF.amdsev.fd")), "-name", name)})
	r.wait()
	if r.code == 0 {
		t.Errorf("code %d, %v; want a failure", r.code, r.err)
	}
}

// TestFailedIdentity: the platform fails just before QEMU would ask the processor, and
// QEMU does not stay attached.
func TestFailedIdentity(t *testing.T) {
	qemus.Each(t, "7.2", func(t *testing.T, qemu string) {
		started := make(chan int, 1)
		u := fake(Options{})
		u.Started = func(p int) { started <- p }
		args := sevArgs(guestFile(t, "OVMF.amdsev.fd"))
		r := start(t, qemu, options{under: u, args: args, faults: []string{"GET_ID:1=EIO"}}).up()
		if err := r.conn.Execute(r.ctx(), "query-sev-capabilities", nil, nil); err == nil {
			t.Error("the fault is not seen")
		}
		r.execute("query-sev-capabilities", nil, nil)
		r.execute("query-status", nil, nil)
		b, err := os.ReadFile("/proc/" + strconv.Itoa(<-started) + "/status")
		if err != nil || !strings.Contains(string(b), "TracerPid:\t0") {
			t.Errorf("QEMU is still attached: %v", err)
		}
		r.quit()
	})
}

// TestRebuiltVM: QEMU makes a new VM to reset a confidential guest (11.1).
func TestRebuiltVM(t *testing.T) {
	firmware := guestFile(t, "OVMF.amdsev.fd")
	qemus.Each(t, "11.1", func(t *testing.T, qemu string) {
		r := startFake(t, qemu, append(sevArgs(firmware, "policy=5"), "-cpu", "EPYC-v4")).up()
		first := r.digest()
		r.execute("cont", nil, nil)
		r.execute("system_reset", nil, nil)
		measuredAgain := func(c swtee.CommandRecord) bool {
			return c.Command == swtee.CmdLaunchMeasure && c.Count == 2
		}
		for range 100 { // the reset is asynchronous
			if slices.ContainsFunc(r.report().Commands, measuredAgain) {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		rep := r.report()
		if r.digest() != first || len(rep.Pages) != 2 {
			t.Errorf("after the reset %s with %d pages, want %s as before with 2", r.digest(), len(rep.Pages), first)
		}
		for _, c := range rep.Commands {
			if c.Status != "SUCCESS" {
				t.Errorf("%+v", c)
			}
		}
		r.quit()
	})
}

// TestDelayEnds: a slow platform does not delay the end of QEMU.
func TestDelayEnds(t *testing.T) {
	u := fake(Options{})
	u.Started = func(pid int) { time.AfterFunc(300*time.Millisecond, func() { _ = unix.Kill(pid, unix.SIGKILL) }) }
	began := time.Now()
	args := sevArgs(guestFile(t, "OVMF.amdsev.fd"))
	r := start(t, qemus.Newest(t), options{under: u, args: args, faults: []string{"LAUNCH_START=delay:1h"}})
	r.wait()
	if took := time.Since(began); took > 20*time.Second || r.code != 128+int(unix.SIGKILL) {
		t.Errorf("code %d after %v", r.code, took)
	}
}

func TestCommandLineHelpers(t *testing.T) {
	for line, want := range map[string]bool{
		"qemu -object sev-guest,id=a":                              true,
		`qemu -object {"qom-type":"sev-snp-guest","id":"a"}`:       true,
		"qemu --object tdx-guest,id=a":                             true,
		"qemu -object rng-random,id=sev-snp-guest -append -object": false,
	} {
		if got := Confidential(strings.Fields(line)); got != want {
			t.Errorf("%s: %t, want %t", line, got, want)
		}
	}
	for line, want := range map[string]error{
		"-readconfig f":                          ErrReadConfig,
		"-runas guest":                           ErrUser,
		"-run-with async-teardown=on,user=guest": ErrUser,
		"--daemonize":                            ErrDaemonize,
		"-run-with chroot=/x -name daemonize":    nil,
	} {
		if err := refuse(strings.Fields(line)); err != want {
			t.Errorf("%s: %v, want %v", line, err, want)
		}
	}
	if _, err := Run(t.Context(), Options{Argv: []string{filepath.Join(t.TempDir(), "no-qemu")}}); err == nil {
		t.Error("a missing QEMU is not an error")
	}
}
