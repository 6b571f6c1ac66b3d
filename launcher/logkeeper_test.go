package launcher

import (
	"os"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// withKeeper lets a process keep the logs of a VM.
func withKeeper(t *testing.T) func(*plan.Facts) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return func(f *plan.Facts) { f.LogKeeper = &plan.LogKeeper{Program: self, Max: 64 << 10} }
}

// TestLogKeeperPassesErrorsOn: why QEMU did not start is told, though it went through a pipe.
func TestLogKeeperPassesErrorsOn(t *testing.T) {
	h := newMachineTest(t)
	h.faults("start", dies+"no room at the inn")
	_, err := h.plan(plainGuest, withKeeper(t)).Start(t.Context(), StartOptions{})
	if want := "no room at the inn"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %q in it", err, want)
	}
	h.nothingLeft("after QEMU's death")
	p := h.plan(plainGuest, withKeeper(t), func(f *plan.Facts) { f.LogKeeper.Program = "/nonexistent/keeper" })
	_, err = p.Start(t.Context(), StartOptions{})
	if err == nil || !strings.Contains(err.Error(), "helper log-keeper: exec") {
		t.Errorf("a missing program: %v", err)
	}
	h.nothingLeft("without the keeper's program")
}

// TestLogKeeperHasTheLogs: QEMU gets pipes, and the files hold what was written to them.
func TestLogKeeperHasTheLogs(t *testing.T) {
	h := newMachineTest(t)
	m, err := h.plan(plainGuest, withKeeper(t)).Start(t.Context(), StartOptions{})
	if err != nil {
		t.Fatal(err)
	}
	h.end(m)
	if err := m.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{rundir.ConsoleLog, rundir.EventsLog, rundir.QEMULog} {
		if _, err := os.Stat(m.dir.LogPath(name)); err != nil {
			t.Error(err)
		}
	}
}
