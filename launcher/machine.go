package launcher

import (
	"context"
	"fmt"
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
}

// commandTimeout bounds each QMP command: QEMU answers in milliseconds unless
// it is stopped or stuck.
const commandTimeout = 30 * time.Second

// quickTimeout bounds commands to a QEMU that may be stuck, where there is another way.
const quickTimeout = 2 * time.Second

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
	m.settleRelease(ctx)
	return m, nil
}

// settleRelease finishes a release whose command died after QEMU had let the guest
// run and before that was recorded. Only QEMU knows.
func (m *Machine) settleRelease(ctx context.Context) {
	staged, err := m.dir.StagedRecord()
	if err != nil || staged == nil || State(staged.State) != Running || m.mayBecome(Running) != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, quickTimeout)
	defer cancel()
	conn, err := m.QMP(ctx)
	if err != nil {
		return
	}
	if status, err := (qmp.QueryStatus{}).Execute(ctx, conn); err == nil && status.Running &&
		m.dir.CommitRecord() == nil {
		m.rec = staged
	}
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

// step does what brings the machine to a new state. The record is written before
// that, and put in place after: a full disk fails before anything has happened.
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
		m.dir.UnstageRecord()
		return err
	}
	if err := m.dir.CommitRecord(); err != nil {
		return fmt.Errorf("%s: it is %s now, but its record is not: %w", m.rec.Name, to, err)
	}
	m.rec = &next
	return nil
}
