package launcher

import (
	"context"

	"github.com/digitalocean/go-qemu/qmp/raw"

	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/qmp"
)

// Pause stops the CPUs of a guest that has been released, until Resume. Whether a guest is
// paused is QEMU's to know: the record goes on saying that it runs.
func (m *Machine) Pause(ctx context.Context) error {
	return m.whileRunning(ctx, "pause", func(ctx context.Context, c *qmp.Conn) error {
		return raw.NewMonitor(c.Monitor(ctx)).Stop()
	})
}

// Resume lets a paused guest go on. One that has not been released yet is released, and
// not resumed: its latch decides.
func (m *Machine) Resume(ctx context.Context) error {
	return m.whileRunning(ctx, "resume", func(ctx context.Context, c *qmp.Conn) error {
		return qmp.Cont{}.Execute(ctx, c)
	})
}

func (m *Machine) whileRunning(ctx context.Context, what string, do func(context.Context, *qmp.Conn) error) error {
	step(ctx, what)
	if m.State() != Running {
		return &fault.Error{
			Kind: fault.State, Op: m.rec.Name, Err: errNotReleased, Fix: `"vmlatch release NAME" lets it run`,
		}
	}
	conn, err := m.QMP(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	if err := do(ctx, conn); err != nil {
		return m.said(what, err)
	}
	return nil
}

// CPUs reports, by a guest's last events, whether its CPUs were last started or stopped:
// QEMU writes down each time that they are, whoever asked. It is known once there was one.
func CPUs(events []Event) (running, known bool) {
	for _, e := range events {
		switch e.Name {
		case qmp.EventStop:
			running, known = false, true
		case qmp.EventResume:
			running, known = true, true
		}
	}
	return running, known
}

// passedLatch reports whether another program has let a guest run that was not released.
func (m *Machine) passedLatch() bool {
	if m.State() == Running || m.State() == Stopping {
		return false
	}
	log, err := m.dir.OpenLog(rundir.EventsLog, false)
	if err != nil {
		return false
	}
	defer log.Close()
	running, _ := CPUs(LastEvents(log))
	return running
}
