//go:build linux

package broker

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
)

// TestAuditTampered: no byte of the audit can be changed, and no line removed but the last ones,
// which state.json remembers.
func TestAuditTampered(t *testing.T) {
	w := newWorld(t, secret("disk", "repeat"))
	for i := range 4 {
		w.want(w.guest(byte(i), exchange.SNP), "released")
	}
	_ = w.Close()
	whole := w.read("state/audit.jsonl")
	if h, n, err := ReadAudit(bytes.NewReader(whole), nil); err != nil || n != int64(len(whole)) || h.Seq == 0 {
		t.Fatalf("as it is: %+v, %d, %v", h, n, err)
	}
	lines := bytes.SplitAfter(whole, []byte("\n"))
	last := len(whole) - len(lines[len(lines)-2])
	for i := range last - 1 {
		bad := bytes.Clone(whole)
		bad[i] ^= 1
		if _, _, err := ReadAudit(bytes.NewReader(bad), nil); !errors.Is(err, ErrAudit) {
			t.Fatalf("byte %d (%q): %v, want ErrAudit", i, whole[i], err)
		}
	}
	for i := range len(lines) - 2 {
		bad := bytes.Join(append(append([][]byte{}, lines[:i]...), lines[i+1:]...), nil)
		if _, _, err := ReadAudit(bytes.NewReader(bad), nil); !errors.Is(err, ErrAudit) {
			t.Errorf("without line %d: %v, want ErrAudit", i+1, err)
		}
	}
	flipped := bytes.Clone(whole)
	flipped[last+20] ^= 1
	for what, text := range map[string][]byte{
		"nothing":               nil,
		"a line less":           whole[:last],
		"a changed last line":   flipped,
		"half of it":            whole[:len(whole)/2],
		"changed inside a line": bytes.Replace(whole, []byte("appliance"), []byte("bppliance"), 1),
	} {
		w.write("state/audit.jsonl", string(text))
		if _, err := New(w.config()); !errors.Is(err, ErrAudit) {
			t.Errorf("%s: %v, want ErrAudit", what, err)
		}
		if got := w.read("state/audit.jsonl"); !bytes.Equal(got, text) {
			t.Errorf("%s: a start that is refused changes the audit", what)
		}
	}
}

// TestAuditLoss: an owner can go on after a loss, which the audit then says; what state.json
// remembers still counts.
func TestAuditLoss(t *testing.T) {
	w := newWorld(t, secret("rare", "once")+secret("disk", "repeat"))
	w.want(w.guest(1, exchange.SNP, "rare"), "released")
	_ = w.Close()
	w.write("state/audit.jsonl", "")
	c := w.config()
	c.AcceptLoss = true
	b, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	w.Broker = b
	w.want(w.guest(2, exchange.SNP, "rare"), reasonOnce)
	w.want(w.guest(3, exchange.SNP), "released")
	if lost := w.events(evLost); len(lost) != 1 || lost[0].Lost == nil || lost[0].Lost.Seq == 0 {
		t.Errorf("the audit says of its loss: %+v", lost)
	}
	w.restart()
	w.want(w.guest(4, exchange.SNP, "rare"), reasonOnce)
	_ = w.Close()
	if found, _ := filepath.Glob(filepath.Join(w.dir, "state", "audit-lost-*")); len(found) != 1 {
		t.Errorf("the rest of the lost audit is in %v, want one file", found)
	}
}

// TestTornLine: a decision that was never answered may be half written; it does not count.
func TestTornLine(t *testing.T) {
	w := newWorld(t, secret("disk", "repeat"))
	w.want(w.guest(1, exchange.SNP), "released")
	_ = w.Close()
	whole := w.read("state/audit.jsonl")
	w.write("state/audit.jsonl", string(whole)+`{"seq":99,"prev":"`)
	w.start()
	w.want(w.guest(1, exchange.SNP), reasonLaunchKey)
	w.want(w.guest(2, exchange.SNP), "released")
	w.restart()

	// One that is whole, but was not answered, counts: the audit is ahead of state.json.
	before := w.read("state/state.json")
	w.want(w.guest(3, exchange.SNP), "released")
	_ = w.Close()
	w.write("state/state.json", string(before))
	w.start()
	w.want(w.guest(3, exchange.SNP), reasonLaunchKey)
	_ = w.Close()
	w.write("state/state.json", "{}")
	if _, err := New(w.config()); !errors.Is(err, ErrAudit) {
		t.Errorf("a damaged state.json: %v, want ErrAudit", err)
	}
}

// TestCannotWrite: where nothing can be recorded, nothing is given; and once it can, the audit
// goes on.
func TestCannotWrite(t *testing.T) {
	w := newWorld(t, secret("rare", "once"))
	good := w.store.audit
	bad, err := os.Open(filepath.Join(w.dir, "state", auditFile)) // not for writing
	if err != nil {
		t.Fatal(err)
	}
	defer bad.Close()
	w.store.audit = bad
	if a := w.want(w.guest(1, exchange.SNP, "rare"), reasonUnavailable); !a.Denial.Retry {
		t.Error("a disk gets room again, want retry")
	}
	w.store.audit, w.store.broken = good, nil
	w.want(w.guest(2, exchange.SNP, "rare"), "released") // the first got nothing
	w.want(w.guest(1, exchange.SNP, "rare"), reasonOnce)

	// state.json alone cannot be written: it counts, and is not answered.
	if err := os.Mkdir(filepath.Join(w.dir, "state", stateFile+".new"), 0o700); err != nil {
		t.Fatal(err)
	}
	g := w.guest(2, exchange.SNP, "rare")
	w.want(g, reasonUnavailable)
	if err := os.Remove(filepath.Join(w.dir, "state", stateFile+".new")); err != nil {
		t.Fatal(err)
	}
	w.restart()
	if _, _, err := ReadAudit(bytes.NewReader(w.read("state/audit.jsonl")), nil); err != nil {
		t.Errorf("the audit after all that: %v", err)
	}
}

func FuzzAudit(f *testing.F) {
	line, h := encodeEvent(&Event{Event: evStart}, Head{})
	next, _ := encodeEvent(&Event{Event: evRelease, Launch: "a", Key: "b", Secrets: []string{"x"}}, h)
	f.Add(append(append(append(line, '\n'), next...), '\n'))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := newState()
		var undo []func()
		h, whole, err := ReadAudit(bytes.NewReader(b), func(e *Event) error {
			undo = append(undo, s.apply(e, Head{}))
			return nil
		})
		if err == nil && whole > int64(len(b)) || h.Seq == 0 && whole > 0 {
			t.Errorf("%d of %d bytes are whole, up to %+v", whole, len(b), h)
		}
		for i := len(undo) - 1; i >= 0; i-- {
			undo[i]()
		}
		if len(s.launches)+len(s.served)+len(s.times)+len(s.known)+len(s.denied)+len(s.marks)+len(s.outcomes)+
			len(s.order)+len(s.recent) > 0 {
			t.Errorf("%q: something is left of events that were taken back: %+v", b, s)
		}
	})
}

// FuzzAnswer: no line makes the broker fail, and none that is not a guest's own gets a secret.
func FuzzAnswer(f *testing.F) {
	w := newWorld(f, secret("disk", "repeat"))
	w.log = func(string, ...any) {}
	seeds := [][]byte{
		w.guest(1, exchange.SNP).request(), w.guest(2, exchange.TDX).request(),
		[]byte(`{"want":"session","version":1}`), exchange.AskForStatus(exchange.SHA512{1}),
	}
	for _, line := range seeds {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		answer := w.Answer(context.Background(), line)
		own := slices.ContainsFunc(
			seeds,
			func(s []byte) bool { return bytes.Equal(bytes.TrimSpace(s), bytes.TrimSpace(line)) },
		)
		if !own && bytes.Contains(answer, []byte("release+json")) {
			t.Errorf("%q gets a release", line)
		}
	})
}
