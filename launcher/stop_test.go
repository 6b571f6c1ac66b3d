package launcher

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/rundir"
)

func TestStop(t *testing.T) {
	for name, c := range map[string]struct {
		faults  []string
		release bool
		timeout time.Duration
		want    bool // graceful
		exit    string
	}{
		"powers off": {nil, true, time.Minute, true, ReasonPoweredOff},
		"does not hear": {
			[]string{"system_powerdown", returns + "{}"}, true, 100 * time.Millisecond, false, ReasonKilled,
		},
		"cannot be asked":   {[]string{"system_powerdown", refuses + "no"}, true, time.Minute, false, ReasonKilled},
		"closes the socket": {[]string{"system_powerdown", hangup}, true, time.Minute, false, ReasonKilled},
		"dies of it":        {[]string{"system_powerdown", dies + "ouch"}, true, time.Minute, false, ReasonKilled},
		"never ran":         {nil, false, time.Minute, false, ReasonKilled},
	} {
		t.Run(name, func(t *testing.T) {
			h := newMachineTest(t)
			h.faults(c.faults...)
			m := h.start(plainGuest, StartOptions{Hold: true})
			if c.release {
				if err := m.Release(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			graceful, err := m.Stop(t.Context(), c.timeout)
			if err != nil || graceful != c.want {
				t.Errorf("graceful %t, %v, want %t", graceful, err, c.want)
			}
			if exit, err := m.Wait(t.Context()); err != nil || exit.Reason != c.exit ||
				exit.Clean() != (c.exit == ReasonPoweredOff) {
				t.Errorf("exit %+v, %v, want %s", exit, err, c.exit)
			}
			if e, err := h.root.Peek("vm"); err != nil || e.Record.State != string(Stopping) {
				t.Errorf("recorded %+v, %v, want that it was stopped", e, err)
			}
			if graceful, err := m.Stop(t.Context(), time.Minute); err != nil || !graceful && c.release {
				t.Errorf("stopped again: graceful %t, %v", graceful, err)
			}
		})
	}
}

// TestStopInterrupted: a guest that was asked and not waited for lives on.
func TestStopInterrupted(t *testing.T) {
	h := newMachineTest(t)
	h.faults("system_powerdown", returns+"{}")
	m := h.start(plainGuest, StartOptions{Hold: true})
	if err := m.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if graceful, err := m.Stop(ctx, time.Minute); graceful || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("graceful %t, %v, want the context's end", graceful, err)
	}
	if err := unix.Kill(m.rec.PID, 0); err != nil {
		t.Errorf("the guest was ended: %v", err)
	}
}

// TestKillByName: a VM is killed whatever another command does with it.
func TestKillByName(t *testing.T) {
	h := newMachineTest(t)
	if err := KillByName(t.Context(), h.root, "vm"); !errors.Is(err, rundir.ErrNotFound) {
		t.Errorf("no VM: %v", err)
	}
	m := h.start(plainGuest, StartOptions{Hold: true}) // and its launch.lock is held
	if err := KillByName(t.Context(), h.root, "vm"); err != nil {
		t.Fatal(err)
	}
	<-m.own.done
	if err := KillByName(t.Context(), h.root, "vm"); !errors.Is(err, rundir.ErrNotFound) {
		t.Errorf("killed again: %v", err)
	}
	m.Close()
	m = h.start(plainGuest, StartOptions{Hold: true})
	m.Close()
	if err := KillByName(t.Context(), h.root, "vm"); err != nil {
		t.Fatal(err)
	}
	<-m.own.done
}

// TestWait: the end is waited for, or the context's.
func TestWait(t *testing.T) {
	h := newMachineTest(t)
	m := h.start(plainGuest, StartOptions{Hold: true})
	m.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := m.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while it runs: %v", err)
	}
	go func() {
		time.Sleep(20 * time.Millisecond)
		_ = unix.Kill(m.rec.PID, unix.SIGKILL)
	}()
	if exit, err := m.Wait(t.Context()); err != nil || exit.Reason != ReasonKilled {
		t.Errorf("exit %+v, %v", exit, err)
	}
}

// TestTraceOfQMP: commands are traced, and never a secret.
func TestTraceOfQMP(t *testing.T) {
	h := newMachineTest(t)
	var log strings.Builder
	m, err := h.plan(sevGuest+owner("agrees")).
		Launch(WithTrace(t.Context(), Trace{QMP: textLogger(&log)}), StartOptions{})
	if err != nil {
		t.Fatal(err)
	}
	h.end(m)
	for _, command := range []string{"query-sev", "query-sev-launch-measure", "sev-inject-launch-secret", "cont"} {
		if !strings.Contains(log.String(), "command="+command) {
			t.Errorf("%s is not traced:\n%s", command, log.String())
		}
	}
	for what, secret := range map[string]string{"the secret": "c2l4dGVlbiBieXRlcyBvZ", "its bytes": "sixteen bytes"} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("%s is in the trace:\n%s", what, log.String())
		}
	}
}
