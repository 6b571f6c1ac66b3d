package launcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/exchange"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/qmp"
)

// Machine is a VM under this process's control: it holds the launch lock and,
// while needed, the VM's QMP connection. Close lets go of both; the VM lives on.
// A Machine is for one goroutine at a time.
type Machine struct {
	dir  *rundir.Dir
	rec  *rundir.Record
	tech technology
	conn *qmp.Conn
	own  *child // the process, if this process started it
}

// commandTimeout bounds each QMP command: QEMU answers in milliseconds unless
// it is stopped or stuck.
const commandTimeout = 30 * time.Second

// lockWait is how long a command waits for another one on the same VM.
const lockWait = 5 * time.Second

// Attach takes control of a running VM. Other commands on it wait meanwhile.
func Attach(ctx context.Context, root rundir.Root, name string) (*Machine, error) {
	dir, rec, err := root.Open(ctx, name, lockWait)
	if err != nil {
		return nil, err
	}
	tech, ok := technologyByName(rec.Technology)
	if !ok {
		dir.Close()
		return nil, fmt.Errorf("%s: its record names the technology %q, which is not known", name, rec.Technology)
	}
	if tech.measurable && rec.SEV == nil {
		dir.Close()
		return nil, fmt.Errorf("%s: its record lacks what the platform said", name)
	}
	m := &Machine{dir: dir, rec: rec, tech: tech}
	m.settleRelease()
	return m, nil
}

// settleRelease finishes a release whose command died after QEMU had let the guest
// run and before that was recorded. Only QEMU knows.
func (m *Machine) settleRelease() {
	staged, err := m.dir.StagedRecord()
	if err != nil || staged == nil || State(staged.State) != Running || checkTransition(m.State(), Running) != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	conn, err := m.QMP(ctx)
	if err != nil {
		return
	}
	if status, err := (qmp.QueryStatus{}).Execute(ctx, conn); err == nil && status.Running && m.dir.CommitRecord() == nil {
		m.rec = staged
	}
}

// Is says whether this is the VM that a Dir was found for, and not only its name's.
func (m *Machine) Is(d *rundir.Dir) bool { return m.dir.Same(d) }

// Record returns what is written down about the machine.
func (m *Machine) Record() rundir.Record { return *m.rec }

// State returns the machine's state.
func (m *Machine) State() State { return State(m.rec.State) }

// Close lets go of the machine and leaves it as it is.
func (m *Machine) Close() {
	m.disconnect()
	m.dir.Close()
}

// Unlock lets other commands work on the machine. Wait and Kill go on, and are about
// this machine, whatever uses its name by then.
func (m *Machine) Unlock() {
	m.disconnect()
	m.dir.Unlock()
}

func (m *Machine) disconnect() {
	if m.conn != nil {
		_ = m.conn.Close()
		m.conn = nil
	}
}

// QMP returns the machine's connection, making one if needed. It is vmlatch's
// own monitor, which takes one client at a time.
func (m *Machine) QMP(ctx context.Context) (*qmp.Conn, error) {
	if m.conn != nil {
		return m.conn, nil
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	c, err := qmp.Dial(ctx, m.dir.Path(rundir.QMPSocket), qmp.Options{})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.rec.Name, err)
	}
	m.conn = c
	return c, nil
}

// become records a new state.
func (m *Machine) become(to State, change func(*rundir.Record)) error {
	return m.step(to, change, func() error { return nil })
}

// step does what brings the machine to a new state. The record is written before
// that, and put in place after: a full disk fails before anything has happened.
func (m *Machine) step(to State, change func(*rundir.Record), act func() error) error {
	if err := checkTransition(m.State(), to); err != nil {
		return fmt.Errorf("%s: %w", m.rec.Name, err)
	}
	next := *m.rec // changed as a copy: it counts only once it is written
	if m.rec.SEV != nil {
		own := *m.rec.SEV
		next.SEV = &own
	}
	next.State = string(to)
	if change != nil {
		change(&next)
	}
	if err := m.dir.StageRecord(&next); err != nil {
		return fmt.Errorf("%s: record: %w", m.rec.Name, err)
	}
	if err := act(); err != nil {
		m.dir.UnstageRecord()
		return err
	}
	if err := m.dir.CommitRecord(); err != nil {
		return fmt.Errorf("%s: it is %s now, but its record is not: %w", m.rec.Name, to, err)
	}
	m.rec = &next
	return nil
}

// Measure asks the platform for the launch measurement. It may be repeated; the
// platform's answer stays the same.
func (m *Machine) Measure(ctx context.Context) (*exchange.Measurement, error) {
	if !m.tech.measurable {
		return nil, fmt.Errorf("%s: %w (technology %s)", m.rec.Name, ErrNotMeasurable, m.tech.name)
	}
	if m.rec.SEV.Measurement == nil {
		if err := checkTransition(m.State(), Measured); err != nil {
			return nil, fmt.Errorf("%s: %w", m.rec.Name, err)
		}
		conn, err := m.QMP(ctx)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, commandTimeout)
		defer cancel()
		raw, err := qmp.QuerySEVLaunchMeasure{}.Execute(ctx, conn)
		if err != nil {
			return nil, platformError(m.rec.Name, "measure", m.lastWords(err))
		}
		if _, err := sev.ParseMeasurement(raw); err != nil {
			return nil, fmt.Errorf("%s: %w", m.rec.Name, err)
		}
		err = m.become(Measured, func(r *rundir.Record) { r.SEV.Measurement = raw })
		if err != nil {
			return nil, err
		}
	}
	s := m.rec.SEV
	return &exchange.Measurement{
		Schema: exchange.MeasurementSchema, Name: m.rec.Name, Technology: m.rec.Technology, Emulated: m.rec.Emulated,
		Firmware: s.Build, Policy: s.Policy, Measurement: s.Measurement,
		Claims: claims(s.Inputs),
	}, nil
}

// Inject hands the platform a secret packet. The platform itself authenticates
// it with the owner's key, so an accepted packet is the proof that opens a
// latch that waits for a secret.
func (m *Machine) Inject(ctx context.Context, p *exchange.Packet) error {
	if !m.tech.measurable {
		return fmt.Errorf("%s: %w: technology %s takes no launch secret", m.rec.Name, ErrNotMeasurable, m.tech.name)
	}
	if m.State() == Paused {
		if _, err := m.Measure(ctx); err != nil {
			return err
		}
	}
	if err := checkTransition(m.State(), Provisioned); err != nil {
		return fmt.Errorf("%s: %w", m.rec.Name, err)
	}
	conn, err := m.QMP(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	return m.step(Provisioned, func(r *rundir.Record) {
		r.SEV.Secret = true
		if r.Latch.Until == UntilSecret {
			r.Latch.Open, r.Latch.Verified = true, true
		}
	}, func() error {
		err := qmp.SEVInjectLaunchSecret{PacketHeader: p.Header, Secret: p.Secret, GPA: p.GPA}.Execute(ctx, conn)
		if err != nil {
			return platformError(m.rec.Name, "the platform refused the secret", m.lastWords(err))
		}
		return nil
	})
}

// Release lets the guest run. It is refused while the latch is closed.
func (m *Machine) Release(ctx context.Context) error {
	if err := checkTransition(m.State(), Running); err != nil {
		return fmt.Errorf("%s: %w", m.rec.Name, err)
	}
	if !m.rec.Latch.Open {
		return fmt.Errorf("%s: %w: it opens with %s", m.rec.Name, ErrLatchClosed, latchOpener(m.rec.Latch.Until))
	}
	conn, err := m.QMP(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	return m.step(Running, func(r *rundir.Record) {
		now := time.Now().UTC()
		r.Released, r.Settled = &now, true
		if r.Latch.Until == UntilIDBlock { // or the platform had not let it run
			r.Latch.Verified = true
		}
	}, func() error {
		if err := (qmp.Cont{}).Execute(ctx, conn); err != nil {
			return platformError(m.rec.Name, "release", m.lastWords(err))
		}
		return nil
	})
}

// lastWords adds what QEMU wrote to an error that is only its going away: it
// ends itself when the platform does not let the guest run.
func (m *Machine) lastWords(err error) error {
	if !errors.Is(err, qmp.ErrClosed) {
		return err
	}
	if said := lastLines(m.dir.LogPath(rundir.QEMULog), 5); said != "" {
		return fmt.Errorf("%w (it wrote: %s)", err, said)
	}
	return err
}

func latchOpener(until string) string {
	if until == UntilSecret {
		return "a secret that the platform accepts"
	}
	return "nothing that has happened yet"
}

// Wait returns when the machine's process has ended, and how the guest ended.
func (m *Machine) Wait(ctx context.Context) (Exit, error) {
	if err := m.dir.WaitEnd(ctx, &rundir.Entry{Record: m.rec}); err != nil {
		return Exit{}, err
	}
	if m.own != nil {
		<-m.own.done
	}
	return ReadExit(m.dir)
}

// Kill ends the machine at once and waits for its end. It needs nothing but the
// VM's lock: neither a record that can be written nor a QEMU that answers.
func (m *Machine) Kill(ctx context.Context) error {
	m.disconnect()
	m.intend()
	return kill(ctx, m.dir, m.rec.PID)
}

// intend writes down, if it can, that the machine ends because somebody wants it to.
func (m *Machine) intend() { _ = m.become(Stopping, nil) }

// KillByName is Kill also for a VM that another command is working on.
func KillByName(ctx context.Context, root rundir.Root, name string) error {
	if dir, rec, err := root.Open(ctx, name, 0); err == nil {
		m := &Machine{dir: dir, rec: rec}
		defer m.Close()
		return m.Kill(ctx)
	}
	dir, e, err := root.Find(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	if !e.VMHeld {
		return fmt.Errorf("%s: %w", name, rundir.ErrNotFound)
	}
	hint := 0
	if e.Record != nil {
		hint = e.Record.PID
	}
	return kill(ctx, dir, hint)
}

// kill tries the process that the record names first: that saves a walk through
// /proc.
func kill(ctx context.Context, dir *rundir.Dir, hint int) error {
	if hint > 0 {
		if p, err := dir.OpenProcess(hint); err == nil {
			defer p.Close()
			if err := p.Signal(unix.SIGKILL); err != nil {
				return err
			}
			if err := p.Wait(ctx); err != nil {
				return err
			}
		}
	}
	return dir.KillIfHeld(ctx)
}

// Stop presses the guest's power button and waits up to timeout for it to power
// off; then it kills the machine. A paused guest has nobody to hear the button
// and is killed at once. It says whether the guest went by itself.
func (m *Machine) Stop(ctx context.Context, timeout time.Duration) (graceful bool, err error) {
	if m.State() != Running && m.State() != Stopping {
		return false, m.Kill(ctx)
	}
	p, err := m.dir.OpenProcess(m.rec.PID)
	if errors.Is(err, rundir.ErrNotFound) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer p.Close()
	asked := m.powerdown(ctx)
	m.intend()
	m.Unlock() // others may end it sooner: stop --now
	if asked == nil {
		limited, cancel := context.WithTimeout(ctx, timeout)
		err = p.Wait(limited)
		cancel()
		if err == nil {
			exit, _ := ReadExit(m.dir)
			return exit.Reason != ReasonKilled, m.dir.KillIfHeld(ctx)
		}
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
	}
	return false, kill(ctx, m.dir, m.rec.PID) // the record says already that it was meant to end, and is others' now
}

// powerdown asks for the end; QEMU that does not answer soon will not.
func (m *Machine) powerdown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := m.QMP(ctx)
	if err != nil {
		return err
	}
	return qmp.SystemPowerdown{}.Execute(ctx, conn)
}

// Exit is how a guest ended.
type Exit struct {
	Reason string `json:"reason"` // QEMU's ShutdownCause, or "killed"
	Guest  bool   `json:"guest"`  // the guest itself asked for it
}

// ReasonPoweredOff is the reason of a guest that powered off by itself.
const ReasonPoweredOff = "guest-shutdown"

// ReasonKilled is the reason of a QEMU that did not say why it went.
const ReasonKilled = "killed"

// Clean says whether the guest powered off by itself.
func (e Exit) Clean() bool { return e.Reason == ReasonPoweredOff }

// ReadExit reads how a VM's guest ended from its event log. A log that does not end
// with SHUTDOWN belongs to a QEMU that was killed or crashed.
func ReadExit(d *rundir.Dir) (Exit, error) {
	log, err := d.OpenLog(rundir.EventsLog, false)
	if err != nil {
		return Exit{}, err
	}
	defer log.Close()
	exit, _, err := Ending(log)
	return exit, err
}

func exitOf(events []Event) Exit {
	exit := Exit{Reason: ReasonKilled}
	for _, e := range events {
		switch e.Name {
		case qmp.EventShutdown:
			exit = Exit{}
			if json.Unmarshal(e.Data, &exit) != nil || exit.Reason == "" {
				exit.Reason = "unknown"
			}
		case qmp.EventGuestPanicked:
			return Exit{Reason: "guest-panic", Guest: true}
		}
	}
	return exit
}
