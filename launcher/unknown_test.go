package launcher

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/firmware/sev/exchange"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/qmp/qmptest"
)

// lostRelease releases a machine whose QEMU does not answer cont in time. runs is whether it
// carries cont out; stuck is whether it answers query-status.
func lostRelease(t *testing.T, runs, stuck bool) (*playedMachine, error) {
	t.Helper()
	m := played(t, "sev", Provisioned, func(r *rundir.Record) { r.Latch.Open = true })
	m.q.On("cont", func(json.RawMessage) (any, error) { return nil, qmptest.ErrSilence })
	m.q.On("query-status", func(json.RawMessage) (any, error) {
		if stuck {
			return nil, qmptest.ErrSilence
		}
		return map[string]any{
			"running": runs,
			"status":  map[bool]string{true: "running", false: "prelaunch"}[runs],
		}, nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	return m, m.Release(ctx)
}

// TestUnknownSecret: the packet whose answer was lost may be injected again, and no other.
func TestUnknownSecret(t *testing.T) {
	m := played(t, "sev", Measured, nil)
	m.q.On("sev-inject-launch-secret", func(json.RawMessage) (any, error) { return nil, qmptest.ErrSilence })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := m.Inject(ctx, testPacket()); !errors.Is(err, ErrUnknown) {
		t.Fatalf("%v, want ErrUnknown", err)
	}
	m.Unlock()
	again, err := Attach(t.Context(), m.root, "vm")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	m.q.On("sev-inject-launch-secret", func(json.RawMessage) (any, error) { return struct{}{}, nil })
	if err := again.Inject(t.Context(), otherPacket()); !errors.Is(err, ErrOtherPacket) {
		t.Errorf("another packet: %v, want ErrOtherPacket", err)
	}
	if err := again.Inject(t.Context(), testPacket()); err != nil || again.State() != Provisioned {
		t.Errorf("the same again: %v, state %s, want provisioned", err, again.State())
	}
}

func otherPacket() *exchange.Packet {
	p := testPacket()
	p.Secret = append([]byte(nil), p.Secret...)
	p.Secret[0] ^= 1
	return p
}

// TestOnePacket: a second packet that differs is refused; the same one changes nothing.
func TestOnePacket(t *testing.T) {
	m := played(t, "sev", Measured, nil)
	for range 2 {
		if err := m.Inject(t.Context(), testPacket()); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(strings.Join(m.q.Asked(), " "), "sev-inject-launch-secret"); n != 1 {
		t.Errorf("the platform got %d packets, want 1", n)
	}
	at := uint64(0x1000)
	elsewhere, header := testPacket(), testPacket()
	elsewhere.GPA = &at
	header.Header = append([]byte(nil), header.Header...)
	header.Header[10] ^= 1
	for name, p := range map[string]*exchange.Packet{"secret": otherPacket(), "gpa": elsewhere, "header": header} {
		err := m.Inject(t.Context(), p)
		if e := fault.As(err); !errors.Is(err, ErrOtherPacket) || e == nil || e.Kind != fault.Refused || e.Fix == "" {
			t.Errorf("another %s: %v, want ErrOtherPacket, refused, with a fix", name, err)
		}
	}
}

func TestPauseAndResume(t *testing.T) {
	m := played(t, "none", Running, nil)
	m.q.On("stop", func(json.RawMessage) (any, error) { return struct{}{}, nil })
	if err := m.Pause(t.Context()); err != nil || !asked(m.q, "stop") {
		t.Errorf("pause: %v, asked %q", err, m.q.Asked())
	}
	if err := m.Resume(t.Context()); err != nil || !asked(m.q, "cont") {
		t.Errorf("resume: %v, asked %q", err, m.q.Asked())
	}
	for _, state := range []State{Paused, Measured, Provisioned, Stopping} {
		m := played(t, "sev", state, func(r *rundir.Record) { r.Latch.Open = true })
		err1, err2 := m.Pause(t.Context()), m.Resume(t.Context())
		if fault.As(err1) == nil || fault.As(err2) == nil || asked(m.q, "cont") || asked(m.q, "stop") {
			t.Errorf("%s: %v, %v, asked %q, want both refused", state, err1, err2, m.q.Asked())
		}
	}
}

func TestCPUs(t *testing.T) {
	event := func(names ...string) string {
		var b strings.Builder
		for _, n := range names {
			b.WriteString(`{"timestamp": {"seconds": 1, "microseconds": 0}, "event": "` + n + `"}` + "\r\n")
		}
		return b.String()
	}
	const unknown, running, stopped = "unknown", "running", "stopped"
	for log, want := range map[string]string{
		"": unknown, event("RTC_CHANGE"): unknown, event("RESUME"): running, event("RESUME", "STOP"): stopped,
		event("STOP", "RESUME", "RTC_CHANGE"): running, event("RESUME", "STOP", "DEVICE_DELETED"): stopped,
	} {
		file := filepath.Join(t.TempDir(), "events.log")
		if err := os.WriteFile(file, []byte(log), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		got := unknown
		if runs, known := CPUs(LastEvents(f)); runs {
			got = running
		} else if known {
			got = stopped
		}
		if got != want {
			t.Errorf("%q: %s, want %s", log, got, want)
		}
		_ = f.Close()
	}
}
