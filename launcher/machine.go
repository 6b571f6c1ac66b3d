package launcher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/tee"
	"github.com/vmlatch/vmlatch/qmp"
)

// Machine is a VM under this process's control: it holds the launch lock and,
// while needed, the VM's QMP connection. Close lets go of both; the VM lives on.
// A Machine is for one goroutine at a time.
type Machine struct {
	dir     *rundir.Dir
	rec     *rundir.Record
	tech    plan.Traits
	conn    *qmp.Conn
	own     *child // the process, if this process started it
	helpers []helper
	session *brokerSession // that the owner's broker gave for this launch
	asks    *os.File       // shows what the guest asks its broker
	qtest   net.Conn       // drives a QEMU that runs no guest; nil if there is none
	// unknown is a state that the machine may have come to: its command was sent, and the
	// answer lost. The staged record tells the next command.
	unknown State
}

// commandTimeout bounds each QMP command: QEMU answers in milliseconds unless
// it is stopped or stuck.
const commandTimeout = 30 * time.Second

// quickTimeout bounds commands to a QEMU that may be stuck, where there is another way.
const quickTimeout = 2 * time.Second

// endTimeout is how long a QEMU that hung up may take to be gone.
const endTimeout = 500 * time.Millisecond

// lockWait is how long a command waits while another works on the same VM.
const lockWait = 5 * time.Second

// Attach takes control of a running VM. Other commands on it wait meanwhile; so does
// this one for a command that is at work, for some seconds.
func Attach(ctx context.Context, root rundir.Root, name string) (*Machine, error) {
	dir, rec, err := root.Open(ctx, name, lockWait)
	if err != nil {
		return nil, err
	}
	tech, ok := tee.Traits(rec.Technology)
	if !ok {
		dir.Close()
		return nil, fmt.Errorf("%s: its record names the technology %q, which is unknown", name, rec.Technology)
	}
	if tech.Measurable && rec.SEV == nil {
		dir.Close()
		return nil, fmt.Errorf("%s: its record lacks what the platform said", name)
	}
	m := &Machine{dir: dir, rec: rec, tech: tech}
	m.settle(ctx)
	return m, nil
}

// settle finishes a step whose command died, or lost QEMU's answer, after it had sent a
// command and before the outcome was recorded. Whether the guest runs only QEMU knows;
// whether it has its secret, not even QEMU tells.
func (m *Machine) settle(ctx context.Context) {
	if m.passedLatch() {
		m.unknown = Running
	}
	staged, err := m.dir.StagedRecord()
	if err != nil || staged == nil || m.mayBecome(State(staged.State)) != nil {
		return
	}
	m.unknown = State(staged.State)
	if m.unknown != Running {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, quickTimeout)
	defer cancel()
	conn, err := m.QMP(ctx)
	if err != nil {
		return
	}
	status, err := (qmp.QueryStatus{}).Execute(ctx, conn)
	switch {
	case err != nil:
		m.disconnect() // its answer may come late
	case !status.Running:
		m.unknown = ""
		m.dir.UnstageRecord()
	case m.dir.CommitRecord() == nil:
		m.unknown, m.rec = "", staged
	}
}

// MayRun reports whether the guest runs, or may: a release was sent and its answer lost.
func (m *Machine) MayRun() bool {
	return m.State() == Running || m.State() == Stopping || m.unknown == Running
}

// Is reports whether this is the VM that a Dir was found for, and not only its name's.
func (m *Machine) Is(d *rundir.Dir) bool { return m.dir.Same(d) }

// Record returns what is written down about the machine.
func (m *Machine) Record() rundir.Record { return *m.rec }

// State returns the machine's state.
func (m *Machine) State() State { return State(m.rec.State) }

// Close lets go of the machine and leaves it as it is.
func (m *Machine) Close() {
	m.disconnect()
	if m.asks != nil {
		_ = m.asks.Close()
		m.asks = nil
	}
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
	c, err := qmp.Dial(ctx, m.dir.Path(rundir.QMPSocket), qmpOptions(ctx))
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

// notDone finds out what has become of a step that failed.
func (m *Machine) notDone(to State, err error) error {
	var e *qmp.Error
	if errors.As(err, &e) && e.Answered() || m.hasEnded() {
		m.unknown = ""
		m.dir.UnstageRecord()
		return err
	}
	m.disconnect()
	m.settle(context.Background()) // also if the user no longer waits
	switch {
	case m.State() == to:
		return nil // it was done
	case m.unknown == to:
		return fmt.Errorf("%w; %w", err, ErrUnknown)
	}
	return err
}

// hasEnded reports whether QEMU is gone, or goes.
func (m *Machine) hasEnded() bool {
	if m.conn == nil || m.conn.Err() == nil { // it did not hang up
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	return m.dir.WaitEnd(ctx, &rundir.Entry{Record: m.rec}) == nil
}

// amend records something about the machine, whose state stays.
func (m *Machine) amend(change func(*rundir.Record)) error {
	next := *m.rec
	change(&next)
	if err := m.dir.StageRecord(&next); err != nil {
		return fmt.Errorf("%s: record: %w", m.rec.Name, err)
	}
	if err := m.dir.CommitRecord(); err != nil {
		return fmt.Errorf("%s: record: %w", m.rec.Name, err)
	}
	m.rec = &next
	return nil
}

// step does what brings the machine to a new state. The record is written before
// that, and put in place after: a full disk fails before anything has happened. If the
// answer is lost, the outcome is a third one, neither done nor refused: the staged record
// stays, and QEMU is asked.
func (m *Machine) step(to State, change func(*rundir.Record), act func() error) error {
	if err := m.mayBecome(to); err != nil {
		return err
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
		return m.notDone(to, err)
	}
	m.unknown = ""
	if err := m.dir.CommitRecord(); err != nil {
		return fmt.Errorf("%s: it is %s now, but its record is not: %w", m.rec.Name, to, err)
	}
	m.rec = &next
	return nil
}
