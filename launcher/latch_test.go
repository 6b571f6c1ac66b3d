package launcher

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/qmp/qmptest"
)

// playedMachine is a machine whose QEMU is played in this process.
type playedMachine struct {
	*Machine
	q    *qmptest.QEMU
	root rundir.Root
}

// played makes a machine in some state. change may change its record.
func played(t *testing.T, technology string, state State, change func(*rundir.Record)) *playedMachine {
	t.Helper()
	dir := t.TempDir()
	root := rundir.Root{Run: filepath.Join(dir, "run"), State: filepath.Join(dir, "state")}
	d, err := root.Create(t.Context(), "vm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	rec := &rundir.Record{
		Schema: rundir.RecordSchema, Name: "vm", Technology: technology, State: string(state), Started: time.Now(),
		Settled: true, Latch: rundir.Latch{Until: "secret"},
	}
	if technology != "none" {
		rec.SEV = &rundir.SEV{Build: sev.Build{Major: 1, Minor: 55}, Policy: 3}
	}
	if change != nil {
		change(rec)
	}
	if err := d.WriteRecord(rec); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.FcntlInt(d.VMLockFile().Fd(), unix.F_DUPFD_CLOEXEC, 0) // as QEMU would
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	d.Unlock()
	q := qmptest.NewQEMU()
	q.On("query-sev-launch-measure", func(json.RawMessage) (any, error) {
		return map[string][]byte{"data": testMeasurement()}, nil
	})
	q.On("sev-inject-launch-secret", func(json.RawMessage) (any, error) { return struct{}{}, nil })
	l, err := net.Listen("unix", d.Path(rundir.QMPSocket))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); q.Listen(l) }()
	m, err := Attach(t.Context(), root, "vm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Close()
		_ = l.Close()
		<-done
	})
	return &playedMachine{m, q, root}
}

// recorded is the state on disk, as another command finds it.
func (p *playedMachine) recorded(t *testing.T) *rundir.Record {
	t.Helper()
	e, err := p.root.Peek("vm")
	if err != nil || e == nil || e.Record == nil {
		t.Fatalf("no record: %+v, %v", e, err)
	}
	return e.Record
}

func asked(q *qmptest.QEMU, command string) bool { return slices.Contains(q.Asked(), command) }

// TestTransitions holds the state table against every pair of states.
func TestTransitions(t *testing.T) {
	all := []State{Launching, Paused, Measured, Provisioned, Running, Stopping, Stopped}
	want := map[State]string{ // may become
		Launching:   "paused",
		Paused:      "measured running stopping stopped",
		Measured:    "measured provisioned running stopping stopped",
		Provisioned: "provisioned running stopping stopped",
		Running:     "stopping stopped",
		Stopping:    "stopping stopped",
		Stopped:     "",
	}
	if len(transitions) != len(all) {
		t.Errorf("%d states in the table, want %d", len(transitions), len(all))
	}
	for _, from := range all {
		m := &Machine{rec: &rundir.Record{Name: "vm", State: string(from)}}
		for _, to := range all {
			err := m.mayBecome(to)
			allowed := slices.Contains(strings.Fields(want[from]), string(to))
			if (err == nil) != allowed {
				t.Errorf("%s to %s: %v, want allowed %t", from, to, err, allowed)
			}
			if err == nil {
				continue
			}
			e := fault.As(err)
			if e == nil || e.Kind != fault.State || !strings.Contains(err.Error(), string(to)) ||
				from != to && !strings.Contains(err.Error(), string(from)) {
				t.Errorf("%s to %s: error %#v, want one of kind State that names both", from, to, err)
			}
		}
	}
}

// TestLatch: in each of its positions, a release lets the guest run or does not.
func TestLatch(t *testing.T) {
	for _, until := range []string{"secret", "id-block", "nothing", "none"} {
		for _, state := range []State{Paused, Measured, Provisioned} {
			for _, open := range []bool{false, true} {
				m := played(
					t,
					"sev",
					state,
					func(r *rundir.Record) { r.Latch = rundir.Latch{Until: until, Open: open} },
				)
				err := m.Release(t.Context())
				if open != (err == nil) || open != m.q.Running() || !open && asked(m.q, "cont") {
					t.Errorf("until %s, %s, open %t: %v, the guest runs %t", until, state, open, err, m.q.Running())
				}
				if !open {
					if !errors.Is(err, ErrLatchClosed) || fault.As(err).Kind != fault.Refused || m.State() != state {
						t.Errorf("until %s: error %v, state %s, want a closed latch and %s", until, err, m.State(),
							state)
					}
					continue
				}
				rec := m.recorded(t)
				if rec.State != "running" || rec.Released == nil || rec.Latch.Verified != (until == "id-block") {
					t.Errorf("until %s: recorded %+v", until, rec)
				}
			}
		}
	}
}

// TestReleaseStates: what runs already, or ends, is not released.
func TestReleaseStates(t *testing.T) {
	for _, state := range []State{Launching, Running, Stopping, Stopped} {
		m := played(t, "sev", state, func(r *rundir.Record) { r.Latch.Open = true })
		if err := m.Release(t.Context()); err == nil || asked(m.q, "cont") {
			t.Errorf("%s: %v, asked %q", state, err, m.q.Asked())
		}
	}
}

func TestMeasure(t *testing.T) {
	m := played(t, "sev", Paused, nil)
	for range 2 { // it may be repeated
		got, err := m.Measure(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Measurement, testMeasurement()) || got.Name != "vm" || got.Policy != 3 ||
			got.Firmware.Minor != 55 {
			t.Errorf("measurement %+v", got)
		}
	}
	if n := strings.Count(strings.Join(m.q.Asked(), " "), "query-sev-launch-measure"); n != 1 {
		t.Errorf("the platform is asked %d times, want once", n)
	}
	if rec := m.recorded(t); rec.State != "measured" || !bytes.Equal(rec.SEV.Measurement, testMeasurement()) {
		t.Errorf("recorded %+v", rec)
	}
	for technology, want := range map[string]string{
		"none": "no launch measurement", "sev-snp": "technology sev-snp", "tdx": "technology tdx",
	} {
		m := played(t, technology, Paused, nil)
		if _, err := m.Measure(t.Context()); !errors.Is(err, ErrNotMeasurable) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want ErrNotMeasurable with %q", technology, err, want)
		}
		if err := m.Inject(t.Context(), testPacket()); !errors.Is(err, ErrNotMeasurable) ||
			asked(m.q, "sev-inject-launch-secret") {
			t.Errorf("%s: a packet: %v", technology, err)
		}
	}
	if m := played(t, "sev", Running, nil); true {
		if _, err := m.Measure(t.Context()); fault.As(err) == nil || fault.As(err).Kind != fault.State {
			t.Errorf("a running guest: %v", err)
		}
	}
}

// TestClaims: the owner is told what the launch loaded, as the files are now.
func TestClaims(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	in := rundir.Inputs{Firmware: file("fw"), Kernel: file("k"), KernelHashes: true}
	if c := claims(in); c == nil || c.Kernel == nil || c.Firmware == [32]byte{} {
		t.Errorf("claims %+v", c)
	}
	in.KernelHashes = false
	if c := claims(in); c == nil || c.Kernel != nil {
		t.Errorf("without hashes: %+v", c)
	}
	in.KernelHashes, in.Kernel = true, "/nonexistent"
	if c := claims(in); c != nil {
		t.Errorf("without the kernel: %+v", c)
	}
	in.Firmware = "/nonexistent"
	if c := claims(in); c != nil {
		t.Errorf("without the firmware: %+v", c)
	}
}

func TestInject(t *testing.T) {
	for _, state := range []State{Paused, Measured, Provisioned} {
		m := played(t, "sev", state, nil)
		if err := m.Inject(t.Context(), testPacket()); err != nil {
			t.Fatalf("%s: %v", state, err)
		}
		if rec := m.recorded(t); rec.State != "provisioned" || !rec.SEV.Secret || !rec.Latch.Open ||
			!rec.Latch.Verified {
			t.Errorf("%s: recorded %+v, %+v", state, rec, rec.SEV)
		}
		if asked(m.q, "query-sev-launch-measure") != (state == Paused) {
			t.Errorf("%s: asked %q", state, m.q.Asked())
		}
	}
	// A latch that does not wait for a secret is not opened by one.
	m := played(t, "sev", Measured, func(r *rundir.Record) { r.Latch = rundir.Latch{Until: "nothing", Open: true} })
	if err := m.Inject(t.Context(), testPacket()); err != nil || m.recorded(t).Latch.Verified {
		t.Errorf("until nothing: %v, %+v", err, m.recorded(t).Latch)
	}
	for _, state := range []State{Running, Stopping} {
		m := played(t, "sev", state, nil)
		if err := m.Inject(t.Context(), testPacket()); err == nil || asked(m.q, "sev-inject-launch-secret") {
			t.Errorf("%s: %v", state, err)
		}
	}
}

// TestInjectRefused: a secret that the platform refuses changes nothing.
func TestInjectRefused(t *testing.T) {
	m := played(t, "sev", Measured, nil)
	m.q.On("sev-inject-launch-secret", func(json.RawMessage) (any, error) {
		return nil, errors.New("SEV: failed to inject secret ret=-5 fw_error=11 'Bad measurement'")
	})
	err := m.Inject(t.Context(), testPacket())
	if e := fault.As(err); e == nil || e.Kind != fault.QEMU ||
		!strings.Contains(err.Error(), "vm: the platform refused the secret: ") {
		t.Errorf("error %v", err)
	}
	rec := m.recorded(t)
	if m.State() != Measured || rec.State != "measured" || rec.SEV.Secret || rec.Latch.Open || m.Record().Latch.Open ||
		m.Record().SEV.Secret {
		t.Errorf("recorded %+v, %+v, want no secret and a closed latch", rec, rec.SEV)
	}
	if err := m.Release(t.Context()); !errors.Is(err, ErrLatchClosed) {
		t.Errorf("release after a refused secret: %v", err)
	}
	if staged, err := m.dir.StagedRecord(); err != nil || staged != nil {
		t.Errorf("a staged record is left: %+v, %v", staged, err)
	}
}

// TestFullDisk: a record that cannot be written keeps the step from being taken.
func TestFullDisk(t *testing.T) {
	for step, do := range map[string]func(m *playedMachine) error{
		"cont":                     func(m *playedMachine) error { return m.Release(t.Context()) },
		"sev-inject-launch-secret": func(m *playedMachine) error { return m.Inject(t.Context(), testPacket()) },
	} {
		m := played(t, "sev", Measured, func(r *rundir.Record) { r.Latch.Open = true })
		full := m.dir.Path(".record.json.new") // something that cannot be replaced
		if err := os.MkdirAll(filepath.Join(full, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := do(m); err == nil || asked(m.q, step) || !strings.Contains(err.Error(), "record") {
			t.Errorf("%s: %v, asked %q", step, err, m.q.Asked())
		}
		if m.State() != Measured {
			t.Errorf("%s: state %s", step, m.State())
		}
		_ = os.RemoveAll(full)
		if err := do(m); err != nil {
			t.Errorf("%s, with room: %v", step, err)
		}
	}
	// The step is done, and only its record cannot be put in place.
	m := played(t, "sev", Measured, func(r *rundir.Record) { r.Latch.Open = true })
	m.q.On("cont", func(json.RawMessage) (any, error) {
		return struct{}{}, os.Remove(m.dir.Path(".record.json.new"))
	})
	if err := m.Release(t.Context()); err == nil ||
		!strings.Contains(err.Error(), "it is running now, but its record is not") {
		t.Errorf("record lost after the release: %v", err)
	}
}

// TestLostConnection: a QEMU that goes away, or never answers, leaves the record as it
// was.
func TestLostConnection(t *testing.T) {
	for name, c := range map[string]struct {
		answer error
		want   error
	}{"hang up": {qmptest.ErrHangup, nil}, "silence": {qmptest.ErrSilence, context.DeadlineExceeded}} {
		for step, do := range map[string]func(ctx context.Context, m *playedMachine) error{
			"query-sev-launch-measure": func(ctx context.Context, m *playedMachine) error {
				_, err := m.Measure(ctx)
				return err
			},
			"sev-inject-launch-secret": func(ctx context.Context, m *playedMachine) error {
				return m.Inject(ctx, testPacket())
			},
			"cont": func(ctx context.Context, m *playedMachine) error { return m.Release(ctx) },
		} {
			m := played(t, "sev", Measured, func(r *rundir.Record) { r.Latch.Open = true })
			m.q.On(step, func(json.RawMessage) (any, error) { return nil, c.answer })
			if err := os.MkdirAll(m.dir.State, 0o700); err != nil {
				t.Fatal(err)
			}
			said := []byte("qemu-system-x86_64: I had to go\n")
			if err := os.WriteFile(m.dir.LogPath(rundir.QEMULog), said, 0o600); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			err := do(ctx, m)
			cancel()
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%s at %s: %v", name, step, err)
			}
			if name == "hang up" && !strings.Contains(err.Error(), "(it wrote: I had to go)") {
				t.Errorf("%s at %s: %v, want QEMU's last words", name, step, err)
			}
			if rec := m.recorded(t); rec.State != "measured" || rec.Released != nil || rec.SEV.Measurement != nil {
				t.Errorf("%s at %s: recorded %+v", name, step, rec)
			}
		}
	}
	m := played(t, "sev", Paused, nil)
	_ = os.Remove(m.dir.Path(rundir.QMPSocket))
	if _, err := m.Measure(t.Context()); err == nil {
		t.Error("without its socket it is measured")
	}
	if err := m.Inject(t.Context(), testPacket()); err == nil {
		t.Error("without its socket it takes a secret")
	}
}
