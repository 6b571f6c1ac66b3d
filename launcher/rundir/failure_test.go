package rundir

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

func failureRoot(t *testing.T) Root {
	dir := t.TempDir()
	return Root{Run: dir + "/run", State: dir + "/state"}
}

// TestFailure: a start that came to nothing is listed until a later one succeeds, and goes
// with the name's logs.
func TestFailure(t *testing.T) {
	r := failureRoot(t)
	now := time.Now()
	note := func(at time.Time, reason string) {
		t.Helper()
		if err := r.NoteFailure(t.Context(), "vm", Failure{At: at, Reason: reason, Code: 4}); err != nil {
			t.Fatal(err)
		}
	}
	note(now, "first")
	note(now, strings.Repeat("x", 2*maxReason))
	d, e, err := r.FindLogs(t.Context(), "vm")
	if err != nil || e.Failure == nil || e.Record != nil || len(e.Failure.Reason) != maxReason || e.Failure.Code != 4 {
		t.Fatalf("%+v, %v, want the last failure, cut", e, err)
	}
	d.Close()
	list, err := r.List(t.Context(), true)
	if err != nil || len(list) != 1 || list[0].Status() != Ended {
		t.Errorf("list %+v, %v, want one that has ended", list, err)
	}
	if _, _, err := r.Find(t.Context(), "vm"); !errors.Is(err, ErrEnded) {
		t.Errorf("find: %v, want ErrEnded", err)
	}
	c, err := r.Create(t.Context(), "vm")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WriteRecord(&Record{Name: "vm", Settled: true, Started: now.Add(time.Second)}); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, _, err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d, e, err = r.FindLogs(t.Context(), "vm"); err != nil || e.Failure != nil || e.Record == nil {
		t.Fatalf("after a start that succeeded: %+v, %v, want its record alone", e, err)
	}
	d.Close()
	note(now.Add(time.Minute), "later")
	if d, e, err = r.FindLogs(t.Context(), "vm"); err != nil || e.Failure == nil || e.Failure.Reason != "later" ||
		e.Record == nil {
		t.Errorf("after one that failed: %+v, %v, want both", e, err)
	}
	d.Close()
	if err := r.Forget(t.Context(), "vm"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(r.State + "/vm"); !os.IsNotExist(err) {
		t.Errorf("rm left the state directory: %v", err)
	}
	if err := r.NoteFailure(t.Context(), "../x", Failure{}); err == nil {
		t.Error("a name that leads elsewhere is taken")
	}
	for _, bad := range []string{"", "{", `{"schema":"other"}`, strings.Repeat(" ", maxFailure+1)} {
		note(now, "x")
		if err := os.WriteFile(r.State+"/vm/"+failureFile, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if list, err := r.List(t.Context(), true); err != nil || len(list) != 0 {
			t.Errorf("%.20q: list %+v, %v, want none", bad, list, err)
		}
	}
}
