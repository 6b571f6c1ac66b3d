package launcher

import (
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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

// TestLogKeeperFollowsQEMU: the keeper ends with QEMU, however that ends, and what QEMU said
// last is known at once.
func TestLogKeeperFollowsQEMU(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(h *machineTest, m *Machine) error
		want string // the reason of the end; "" if nothing is kept
	}{
		"kill": {func(h *machineTest, m *Machine) error { return m.Kill(h.Context()) }, ReasonKilled},
		"stop": {func(h *machineTest, m *Machine) error {
			graceful, err := m.Stop(h.Context(), 10*time.Second)
			if !graceful {
				h.Error("the guest did not power off")
			}
			return err
		}, ReasonPoweredOff},
		"discard": {func(h *machineTest, m *Machine) error { return m.Discard(h.Context()) }, ""},
		"crash": {func(h *machineTest, m *Machine) error {
			if err := unix.Kill(m.rec.PID, unix.SIGKILL); err != nil {
				return err
			}
			_, err := m.Wait(h.Context())
			return err
		}, ReasonKilled},
		"keeper dies": {func(h *machineTest, m *Machine) error {
			if err := unix.Kill(m.helpers[0].pid, unix.SIGKILL); err != nil {
				return err
			}
			<-m.helpers[0].done
			return m.Kill(h.Context())
		}, ReasonKilled},
		"keeper hangs": {func(h *machineTest, m *Machine) error {
			if err := unix.Kill(m.helpers[0].pid, unix.SIGSTOP); err != nil {
				return err
			}
			return m.Kill(h.Context())
		}, ReasonKilled},
	} {
		t.Run(name, func(t *testing.T) {
			h := newMachineTest(t)
			m, err := h.plan(plainGuest, withKeeper(t)).Start(t.Context(), StartOptions{})
			if err != nil {
				t.Fatal(err)
			}
			h.end(m)
			if err := m.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := c.end(h, m); err != nil {
				t.Fatal(err)
			}
			if c.want != "" {
				exit, err := ReadExit(m.dir)
				if err != nil || exit.Reason != c.want {
					t.Errorf("it ended by %q, %v, want %q", exit.Reason, err, c.want)
				}
			}
			if _, _, err := h.root.Sweep(t.Context()); err != nil {
				t.Error(err)
			}
			select {
			case <-m.helpers[0].done:
			case <-time.After(10 * time.Second):
				t.Error("the keeper has outlived QEMU")
				_ = unix.Kill(m.helpers[0].pid, unix.SIGKILL)
			}
		})
	}
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
