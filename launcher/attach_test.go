package launcher

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// TestSettle: a release whose command died after QEMU had let the guest run is found out
// by the next command. Another step is not made up for, whatever QEMU says.
func TestSettle(t *testing.T) {
	for name, c := range map[string]struct {
		from, staged State
		runs         bool
		want         State
	}{
		"released":     {Provisioned, Running, true, Running},
		"not released": {Provisioned, Running, false, Provisioned},
		"another step": {Paused, Measured, true, Paused},
	} {
		m := played(t, "sev", c.from, func(r *rundir.Record) { r.Latch.Open = c.staged == Running })
		if c.runs {
			m.q.On("query-status", func(json.RawMessage) (any, error) {
				return map[string]any{"running": true, "status": "running"}, nil
			})
		}
		next := m.Record()
		next.State = string(c.staged)
		if err := m.dir.StageRecord(&next); err != nil {
			t.Fatal(err)
		}
		m.Close()
		again, err := Attach(t.Context(), m.root, "vm")
		if err != nil {
			t.Fatal(err)
		}
		if again.State() != c.want || m.recorded(t).State != string(c.want) {
			t.Errorf("%s: state %s, recorded %s, want %s", name, again.State(), m.recorded(t).State, c.want)
		}
		again.Close()
	}
}

func TestAttach(t *testing.T) {
	m := played(t, "sev", Paused, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Attach(ctx, m.root, "vm"); err == nil ||
		!errors.Is(err, rundir.ErrBusy) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while another command works on it: %v", err)
	}
	if _, err := Attach(t.Context(), m.root, "other"); !errors.Is(err, rundir.ErrNotFound) {
		t.Errorf("another name: %v", err)
	}
	d, _, err := m.root.Find(t.Context(), "vm")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if !m.Is(d) {
		t.Error("it is not the VM that is found by its name")
	}
	for change, want := range map[string]string{"technology": "is unknown", "sev": "lacks what the platform said"} {
		m.rec.Technology, m.rec.SEV = "sev", &rundir.SEV{}
		if change == "technology" {
			m.rec.Technology = "sgx"
		} else {
			m.rec.SEV = nil
		}
		if err := m.dir.WriteRecord(m.rec); err != nil {
			t.Fatal(err)
		}
		m.dir.Unlock()
		if _, err := Attach(t.Context(), m.root, "vm"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("a record with another %s: %v, want %q", change, err, want)
		}
	}
}

// TestCommands: a command that makes no sense, or would pass a closed latch, is
// refused, also where it is wrapped.
func TestCommands(t *testing.T) {
	human := func(line string) json.RawMessage {
		b, err := json.Marshal(map[string]string{"command-line": line})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, c := range []struct {
		technology, command string
		args                json.RawMessage
		open                bool
		want                string // "" is allowed
	}{
		{"sev", "query-status", nil, false, ""},
		{"sev", "cont", nil, false, "latch is closed"},
		{"sev", "cont", nil, true, ""},
		{"sev", "human-monitor-command", human("info status"), false, "latch is closed"},
		{"sev", "human-monitor-command", human("info status"), true, ""},
		{"sev", "migrate", nil, true, "impossible to migrate a sev guest"},
		{"none", "migrate", nil, true, ""},
		{"tdx", "snapshot-save", nil, true, "suspend to disk"},
		{"sev-snp", "dump-guest-memory", nil, true, "impossible to dump"},
		{"sev", "human-monitor-command", human("  migrate -d tcp:x"), true, "impossible to migrate"},
		{"sev", "human-monitor-command", human("dump_guest_memory/x y"), true, "impossible to dump"},
		{"sev", "human-monitor-command", json.RawMessage(`[]`), true, ""},
	} {
		traits, _ := tee.Traits(c.technology)
		m := &Machine{tech: traits, rec: &rundir.Record{Name: "vm", Latch: rundir.Latch{Open: c.open}}}
		err := m.CheckCommand(c.command, c.args)
		if (c.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s %s, open %t: %v, want %q", c.technology, c.command, c.args, c.open, err, c.want)
		}
		if err != nil && (fault.As(err).Kind != fault.Refused || fault.As(err).Fix == "") {
			t.Errorf("%s: %#v, want one of kind Refused with a fix", c.command, err)
		}
	}
}
