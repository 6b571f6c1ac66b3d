package launcher

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/digitalocean/go-qemu/qmp/raw"
	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/qmp"
)

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
	step(ctx, "kill")
	m.disconnect()
	m.intend()
	return kill(ctx, m.dir, m.rec.PID)
}

// intend writes down, if it can, that the machine ends because it was asked to.
func (m *Machine) intend() { _ = m.become(Stopping, nil) }

// KillByName is Kill also for a VM that another command is working on.
func KillByName(ctx context.Context, root rundir.Root, name string) error {
	if dir, rec, err := root.Open(ctx, name, 0); err == nil {
		m := &Machine{dir: dir, rec: rec}
		defer m.Close()
		return m.Kill(ctx)
	}
	dir, e, err := root.Find(ctx, name)
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
	dir.Ungroup()
	noteEnd(ctx, dir)
	return dir.KillIfHeld(ctx)
}

// Stop presses the guest's power button and waits up to timeout for it to power
// off; then it kills the machine. A paused guest cannot hear the button and is killed
// at once. It reports whether the guest went by itself.
func (m *Machine) Stop(ctx context.Context, timeout time.Duration) (graceful bool, err error) {
	if !m.MayRun() {
		return false, m.Kill(ctx)
	}
	if staged, err := m.dir.StagedRecord(); m.unknown == Running && err == nil && staged != nil {
		m.rec = staged // its time of release, so that it counts as a guest that ran
	}
	p, err := m.dir.OpenProcess(m.rec.PID)
	if errors.Is(err, rundir.ErrNotFound) {
		return true, m.dir.KillIfHeld(ctx)
	}
	if err != nil {
		return false, err
	}
	defer p.Close()
	step(ctx, "stop")
	asked := m.powerdown(ctx)
	m.intend()
	m.Unlock() // others may end it sooner: stop --now
	if asked == nil {
		limited, cancel := context.WithTimeout(ctx, timeout)
		err = p.Wait(limited)
		cancel()
		if err == nil {
			m.dir.Ungroup()
			m.dir.AwaitLogs(ctx)
			return m.endedByItself(), m.dir.KillIfHeld(ctx)
		}
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
	}
	// The record says that it was meant to end, and may be changed by others now.
	err = kill(ctx, m.dir, m.rec.PID)
	return err == nil && m.endedByItself(), err // it may have been just in time
}

// endedByItself reports whether QEMU said why it ended before it went.
func (m *Machine) endedByItself() bool {
	exit, err := ReadExit(m.dir)
	return err == nil && exit.Reason != ReasonKilled
}

// powerdown asks for the end; QEMU that does not answer soon will not.
func (m *Machine) powerdown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, quickTimeout)
	defer cancel()
	conn, err := m.QMP(ctx)
	if err != nil {
		return err
	}
	if status, err := (qmp.QueryStatus{}).Execute(ctx, conn); err == nil && status.Status == qmp.StatusPaused {
		if err := (qmp.Cont{}).Execute(ctx, conn); err != nil { // or it would not hear the button
			return err
		}
	}
	return raw.NewMonitor(conn.Monitor(ctx)).SystemPowerdown()
}
