//go:build !quick

package launcher

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/fault"
)

// TestHelperFollowsQEMU: a helper's life follows QEMU's, however QEMU ends, and
// whether or not the helper wants to.
func TestHelperFollowsQEMU(t *testing.T) {
	for _, how := range []string{"follows", "stubborn"} {
		for end, do := range map[string]func(h *machineTest, m *Machine) error{
			"kill": func(h *machineTest, m *Machine) error { return m.Kill(h.Context()) },
			"stop": func(h *machineTest, m *Machine) error {
				if err := m.Release(h.Context()); err != nil {
					return err
				}
				graceful, err := m.Stop(h.Context(), 10*time.Second)
				if !graceful {
					h.Error("the guest did not power off")
				}
				return err
			},
			"discard": func(h *machineTest, m *Machine) error { return m.Discard(h.Context()) },
			"crash": func(h *machineTest, m *Machine) error {
				if err := unix.Kill(m.rec.PID, unix.SIGKILL); err != nil {
					return err
				}
				<-m.own.done
				m.Close()
				_, _, err := h.root.Sweep(h.Context())
				return err
			},
		} {
			t.Run(how+"/"+end, func(t *testing.T) {
				h := newMachineTest(t)
				p := h.plan(plainGuest)
				file := h.withHelper(p, how)
				m, err := p.Start(t.Context(), StartOptions{Hold: true})
				if err != nil {
					t.Fatal(err)
				}
				h.end(m)
				pid := h.pid(file)
				if err := unix.Kill(pid, 0); err != nil {
					t.Fatalf("the helper does not run: %v", err)
				}
				if err := do(h, m); err != nil {
					t.Fatal(err)
				}
				select {
				case <-m.helpers[0].done:
				case <-time.After(10 * time.Second):
					t.Error("the helper has outlived QEMU")
					_ = unix.Kill(pid, unix.SIGKILL)
				}
			})
		}
	}
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

// TestLaunchFails: whatever goes wrong, and whenever, nothing of the VM is left.
func TestLaunchFails(t *testing.T) {
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		spec   string
		faults []string
		opt    StartOptions
		kind   fault.Kind
		want   string
	}{
		"QEMU dies at once": {
			plainGuest,
			[]string{"start", dies + "no room"},
			StartOptions{},
			fault.QEMU,
			"vm: QEMU did not start: no room",
		},
		"QEMU dies later": {
			plainGuest, []string{"query-status", dies + "out of luck"}, StartOptions{}, fault.QEMU, "out of luck",
		},
		"QEMU refuses": {
			plainGuest, []string{"query-status", refuses + "not today"}, StartOptions{}, fault.QEMU, "not today",
		},
		"no negotiation": {
			plainGuest, []string{"qmp_capabilities", hangup}, StartOptions{}, fault.QEMU, "connection closed",
		},
		"the guest runs": {
			plainGuest,
			[]string{"query-status", returns + `{"running": true, "status": "running"}`},
			StartOptions{},
			fault.QEMU, "told to wait",
		},
		"garbage": {
			plainGuest, []string{"query-status", returns + `[]`}, StartOptions{}, fault.QEMU, "unexpected reply",
		},
		"SEV is off": {
			sevGuest,
			[]string{"query-sev", returns + `{"enabled": false}`},
			StartOptions{Hold: true},
			fault.QEMU,
			"SEV is not enabled",
		},
		"another policy": {
			sevGuest,
			[]string{"query-sev", returns + `{"enabled": true, "policy": 1, "state": "launch-secret"}`},
			StartOptions{Hold: true},
			fault.QEMU, "policy 0x1 instead of 0xb",
		},
		"not measured": {
			sevGuest,
			[]string{"query-sev", returns + `{"enabled": true, "policy": 11, "state": "uninit"}`},
			StartOptions{Hold: true},
			fault.QEMU, "did not measure the guest",
		},
		"SNP is off": {
			snpGuest,
			[]string{"query-sev", returns + `{"enabled": true, "sev-type": "sev"}`},
			StartOptions{},
			fault.QEMU, "SEV-SNP is not enabled",
		},
		"another SNP policy": {
			snpGuest,
			[]string{"query-sev", returns + `{"enabled": true, "sev-type": "sev-snp", "snp-policy": 1}`},
			StartOptions{},
			fault.QEMU, "policy 0x1 instead of",
		},
		"no release": {
			snpGuest,
			[]string{"cont", refuses + "fw_error=11 "},
			StartOptions{},
			fault.QEMU,
			"vm: release: qmp: cont: fw_error=11",
		},
		"died at release": {
			snpGuest,
			[]string{"cont", dies + "SNP_LAUNCH_FINISH ret=-5 fw_error=11 ''"},
			StartOptions{},
			fault.QEMU,
			"(it wrote: SNP_LAUNCH_FINISH",
		},
		"the caller": {
			plainGuest, nil, StartOptions{Paused: func(*Machine) error { return boom }}, fault.Failure, "boom",
		},
		"owner refuses": {
			sevGuest + owner("refuses"), nil, StartOptions{}, fault.Refused, "gave no secret: exit status 4",
		},
		"owner fails": {
			sevGuest + owner("fails"), nil, StartOptions{}, fault.Failure, "gave no secret: exit status 1",
		},
		"owner hangs": {
			sevGuest + owner("hangs"), nil, StartOptions{}, fault.Failure, "did not answer within 2s",
		},
		"owner talks":     {sevGuest + owner("talks"), nil, StartOptions{}, fault.Failure, "gave no secret"},
		"owner's garbage": {sevGuest + owner("garbage"), nil, StartOptions{}, fault.Failure, "malformed"},
		"no measurement": {
			sevGuest + owner("agrees"),
			[]string{"query-sev-launch-measure", refuses + "not available"},
			StartOptions{},
			fault.QEMU, "vm: measure: qmp: query-sev-launch-measure: not available",
		},
		"short measurement": {
			sevGuest + owner("agrees"),
			[]string{"query-sev-launch-measure", returns + `{"data": "AAAA"}`},
			StartOptions{},
			fault.Failure, "launch measurement: 3 bytes",
		},
		"secret refused": {
			sevGuest + owner("agrees"),
			[]string{"sev-inject-launch-secret", refuses + "ret=-5 fw_error=11 ''"},
			StartOptions{},
			fault.QEMU, "the platform refused the secret",
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newMachineTest(t)
			h.faults(c.faults...)
			m, err := h.plan(c.spec).Launch(t.Context(), c.opt)
			if err == nil {
				m.Close()
				t.Fatal("it succeeds")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
			if e := fault.As(err); e != nil && e.Kind != c.kind || e == nil && c.kind != fault.Failure {
				t.Errorf("error %#v, want kind %d", e, c.kind)
			}
			h.nothingLeft("after " + name)
		})
	}
}

// TestLaunchInterrupted: a launch whose context ends leaves nothing, at any step.
func TestLaunchInterrupted(t *testing.T) {
	const steps = "reserve sockets slot record helper fork started connect query paused measure owner inject release"
	for step := range strings.FieldsSeq(steps) {
		t.Run(step, func(t *testing.T) {
			h := newMachineTest(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ctx = WithTrace(ctx, Trace{Step: func(s string) {
				if s == step {
					cancel()
				}
			}})
			p := h.plan(sevGuest + owner("agrees"))
			h.withHelper(p, "follows")
			m, err := p.Launch(ctx, StartOptions{})
			if err == nil {
				m.Close()
				t.Fatal("it succeeds")
			}
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v, want the context's", err)
			}
			h.nothingLeft("interrupted at " + step)
		})
	}
}

// TestUnknownOutcome: a release whose answer was lost is neither done nor refused until QEMU
// has been asked.
func TestUnknownOutcome(t *testing.T) {
	staged := func(m *playedMachine) bool {
		r, err := m.dir.StagedRecord()
		return err == nil && r != nil
	}
	m, err := lostRelease(t, true, false)
	if err != nil || m.State() != Running || m.recorded(t).State != "running" || staged(m) {
		t.Errorf("it runs: %v, state %s, recorded %s, want a release", err, m.State(), m.recorded(t).State)
	}
	m, err = lostRelease(t, false, false)
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnknown) || m.MayRun() || staged(m) ||
		m.recorded(t).State != "provisioned" {
		t.Errorf("it does not run: %v, may run %t, staged %t, want that it is not released", err, m.MayRun(), staged(m))
	}
	m, err = lostRelease(t, true, true)
	if !errors.Is(err, ErrUnknown) || !m.MayRun() || !staged(m) {
		t.Fatalf("stuck: %v, may run %t, staged %t, want ErrUnknown and a staged record", err, m.MayRun(), staged(m))
	}
	if e, err := m.root.Peek("vm"); err != nil || e.Staged == nil || e.Staged.State != "running" {
		t.Errorf("readers find %+v, %v, want the staged record", e, err)
	}
	m.Unlock()
	again, err := Attach(t.Context(), m.root, "vm") // still stuck
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if !again.MayRun() || again.State() != Provisioned {
		t.Errorf("the next command: may run %t, state %s, want true and provisioned", again.MayRun(), again.State())
	}
}
