package launcher

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

func TestLaunch(t *testing.T) {
	h := newMachineTest(t)
	var steps []string
	var said bytes.Buffer
	ctx := WithTrace(t.Context(), Trace{Step: func(s string) { steps = append(steps, s) }})
	m, err := h.plan(sevGuest+owner("agrees")).Launch(ctx, StartOptions{OwnerStderr: &said})
	if err != nil {
		t.Fatal(err)
	}
	h.end(m)
	rec := m.Record()
	if m.State() != Running || !rec.Latch.Open || !rec.Latch.Verified || !rec.SEV.Secret || rec.Released == nil ||
		!rec.Settled {
		t.Errorf("state %s, record %+v, want a running VM with a verified, open latch", m.State(), rec)
	}
	if !bytes.Equal(rec.SEV.Measurement, testMeasurement()) || rec.SEV.Build.Minor != 55 || rec.PID == 0 {
		t.Errorf("record %+v lacks what the platform said", rec.SEV)
	}
	if !strings.Contains(said.String(), "the owner agrees") {
		t.Errorf("the owner's command wrote %q to its standard error", said.String())
	}
	want := "reserve sockets slot record fork started connect query paused measure owner inject release"
	if got := strings.Join(steps, " "); got != want {
		t.Errorf("steps:\n%s\nwant\n%s", got, want)
	}
	kept, err := readState(h, "vm")
	if err != nil || kept.State != string(Running) || !kept.Latch.Verified {
		t.Errorf("the record on disk says %+v, %v", kept, err)
	}
}

// readState is the record as another command finds it.
func readState(h *machineTest, name string) (*rundir.Record, error) {
	e, err := h.root.Peek(name)
	if err != nil || e == nil {
		return nil, errors.Join(err, rundir.ErrNotFound)
	}
	return e.Record, nil
}

func TestLaunchPlain(t *testing.T) {
	h := newMachineTest(t)
	paused := false
	m, err := h.plan(plainGuest).Launch(t.Context(), StartOptions{Unit: "u.service", Paused: func(m *Machine) error {
		paused = m.State() == Paused
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	h.end(m)
	if rec := m.Record(); m.State() != Running || !paused || rec.Origin.Unit != "u.service" || rec.Latch.Verified {
		t.Errorf("state %s, paused before %t, record %+v", m.State(), paused, rec)
	}
}

// TestSilentQEMU: a QEMU that never answers is given up at the context's end.
func TestSilentQEMU(t *testing.T) {
	for _, c := range [][]string{{"start", silent}, {"qmp_capabilities", silent}, {"query-status", silent}} {
		h := newMachineTest(t)
		h.faults(c...)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		m, err := h.plan(plainGuest).Start(ctx, StartOptions{})
		cancel()
		if err == nil {
			m.Close()
			t.Fatalf("%v: it succeeds", c)
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v: error %v, want the context's", c, err)
		}
		h.nothingLeft(c[0])
	}
}

func TestStartRefused(t *testing.T) {
	h := newMachineTest(t)
	p := h.plan(sevGuest)
	if err := p.CanFinish(false); fault.As(err) == nil ||
		!strings.Contains(err.Error(), "no command that asks the owner") {
		t.Errorf("a launch that cannot be finished: %v", err)
	}
	if m, err := p.Launch(t.Context(), StartOptions{}); err == nil {
		m.Close()
		t.Error("a launch that cannot be finished is begun")
	}
	if err := os.Remove(filepath.Join(h.dir, "k")); err != nil {
		t.Fatal(err)
	}
	if m, err := p.Start(t.Context(), StartOptions{}); err == nil {
		m.Close()
		t.Error("it starts without its kernel")
	} else if !strings.Contains(err.Error(), "kernel: open") {
		t.Errorf("without its kernel: %v", err)
	}
	h.nothingLeft("refused")
	m := h.start(plainGuest, StartOptions{})
	if _, err := h.plan(plainGuest).Start(t.Context(), StartOptions{}); fault.As(err) == nil ||
		fault.As(err).Kind != fault.NameTaken {
		t.Errorf("a second VM of the name: %v", err)
	}
	if err := h.plan(plainGuest).Replaceable(); err != nil {
		t.Errorf("it could not take the first one's place: %v", err)
	}
	if m.State() != Paused {
		t.Errorf("the first one is %s", m.State())
	}
}

// TestWarnings: checks that warn do not keep a VM from being started.
func TestWarnings(t *testing.T) {
	h := newMachineTest(t)
	var warned []string
	opt := StartOptions{Hold: true, Warn: warnInto(&warned)}
	h.start(strings.Replace(sevGuest, "technology", "policy = [\"no-debug\"]\ntechnology", 1), opt)
	if !slices.Contains(warned, "sev-policy-key-sharing") {
		t.Errorf("warnings %v, want sev-policy-key-sharing among them", warned)
	}
}

// TestSlotWait: a start waits for a slot, and tells so.
func TestSlotWait(t *testing.T) {
	h := newMachineTest(t)
	h.faults("start", dies+"sev_launch_start: LAUNCH_START ret=1 fw_error=23 'x'")
	var notices []string
	_, err := h.plan(sevGuest).Start(t.Context(), StartOptions{
		SlotWait: 350 * time.Millisecond, Notice: func(text string) { notices = append(notices, text) },
	})
	if err == nil || !strings.Contains(err.Error(), "(tried 3 times)") || len(notices) != 2 {
		t.Errorf("error %v, notices %q, want three attempts", err, notices)
	}
	h.nothingLeft("without a slot")
	// The operator's limit is counted by leases.
	h.faults()
	p := h.plan(sevGuest)
	p.Slot.Size = 0
	if _, err := p.startOnce(t.Context(), StartOptions{}); err == nil ||
		!strings.Contains(err.Error(), "no free encryption slot") {
		t.Errorf("a slot of none: %v", err)
	}
	h.nothingLeft("over the limit")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = retrying(
		ctx,
		"vm",
		StartOptions{SlotWait: time.Hour},
		func() (*Machine, error) { return p.startOnce(ctx, StartOptions{}) },
	)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("interrupted while it waits: %v", err)
	}
}

// offMainThread runs f on a thread that ends with it. The main thread never does.
func offMainThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		other := make(chan struct{})
		offMainThread(func() { close(other); f() })
		<-other // which cannot be this thread
		runtime.UnlockOSThread()
	}()
}

// TestForeground: a machine in the foreground ends with the thread that started it.
func TestForeground(t *testing.T) {
	h := newMachineTest(t)
	p := h.plan(plainGuest)
	started := make(chan *Machine)
	leave := make(chan struct{})
	offMainThread(func() { // its thread ends with it, for it stays locked
		m, err := p.Start(context.WithoutCancel(t.Context()), StartOptions{Foreground: true})
		if err != nil {
			t.Error(err)
		}
		started <- m
		<-leave
	})
	m := <-started
	if m == nil {
		close(leave)
		return
	}
	h.end(m)
	if !m.Record().Origin.Foreground {
		t.Error("the record does not tell that it is in the foreground")
	}
	close(leave)
	if exit, err := m.Wait(t.Context()); err != nil || exit.Reason != ReasonKilled {
		t.Errorf("it ended %+v, %v, want killed", exit, err)
	}
}

// TestCopies: a copy is made for the run.
func TestCopies(t *testing.T) {
	h := newMachineTest(t)
	vars := filepath.Join(h.dir, "vars.fd")
	if err := os.WriteFile(vars, []byte("variables"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := h.plan(plainGuest)
	to := filepath.Join(h.root.Run, "vm", rundir.VarsFile)
	p.Copies = []plan.Copy{{From: vars, To: to, Use: "test"}}
	m, err := p.Start(t.Context(), StartOptions{})
	if err != nil {
		t.Fatal(err)
	}
	h.end(m)
	if b, err := os.ReadFile(to); err != nil || string(b) != "variables" {
		t.Errorf("the copy is %q, %v", b, err)
	}
	p.Name, p.Copies[0].From = "vm2", filepath.Join(h.dir, "missing")
	p.Copies[0].To = filepath.Join(h.root.Run, "vm2", rundir.VarsFile)
	if _, err := p.Start(t.Context(), StartOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing original: %v", err)
	}
	if e, err := h.root.Peek("vm2"); err != nil || e != nil {
		t.Errorf("the second VM left %+v, %v", e, err)
	}
}
