package launcher

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/exchange"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/qmp"
)

// Measure asks the platform for the launch measurement. It may be repeated; the
// platform's answer stays the same.
func (m *Machine) Measure(ctx context.Context) (*exchange.Measurement, error) {
	m.takes(ctx, "measure")
	if !m.tech.Measurable {
		return nil, m.failed(fault.Failure, fmt.Errorf("%w (technology %s)", ErrNotMeasurable, m.tech.Name))
	}
	if m.rec.SEV.Measurement == nil {
		if err := m.mayBecome(Measured); err != nil {
			return nil, err
		}
		conn, err := m.QMP(ctx)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, commandTimeout)
		defer cancel()
		raw, err := qmp.QuerySEVLaunchMeasure{}.Execute(ctx, conn)
		if err != nil {
			return nil, m.said("measure", err)
		}
		if _, err := sev.ParseMeasurement(raw); err != nil {
			return nil, m.failed(fault.Failure, err)
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
	m.takes(ctx, "inject")
	if !m.tech.Measurable {
		return m.failed(fault.Failure,
			fmt.Errorf("%w: technology %s takes no launch secret", ErrNotMeasurable, m.tech.Name))
	}
	if m.State() == Paused {
		if _, err := m.Measure(ctx); err != nil {
			return err
		}
	}
	digest := packetDigest(p)
	if err := m.onePacket(digest); err != nil {
		return err
	}
	if m.State() == Provisioned && m.rec.SEV.Packet != nil {
		return nil // with this very packet
	}
	if err := m.mayBecome(Provisioned); err != nil {
		return err
	}
	conn, err := m.QMP(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	return m.step(Provisioned, func(r *rundir.Record) {
		r.SEV.Secret, r.SEV.Packet = true, digest
		if r.Latch.Until == plan.UntilSecret {
			r.Latch.Open, r.Latch.Verified = true, true
		}
	}, func() error {
		err := qmp.SEVInjectLaunchSecret{PacketHeader: p.Header, Secret: p.Secret, GPA: p.GPA}.Execute(ctx, conn)
		if err != nil {
			return m.said("the platform refused the secret", err)
		}
		return nil
	})
}

// onePacket refuses a second packet that differs from the first: the latch is opened by
// the secret that the platform accepted, which must be the one that the guest gets.
func (m *Machine) onePacket(digest []byte) error {
	taken := m.rec.SEV.Packet
	if staged, err := m.dir.StagedRecord(); err == nil && staged != nil && staged.SEV != nil && m.unknown != "" {
		taken = staged.SEV.Packet
	}
	if taken == nil || bytes.Equal(taken, digest) {
		return nil
	}
	return &fault.Error{
		Kind: fault.Refused, Op: m.rec.Name, Err: ErrOtherPacket,
		Fix: "for another secret stop the VM, and start it with a new session",
	}
}

func packetDigest(p *exchange.Packet) []byte {
	h := sha256.New()
	h.Write(p.Header) // its length is fixed
	if p.GPA != nil {
		h.Write(binary.LittleEndian.AppendUint64([]byte{1}, *p.GPA))
	} else {
		h.Write([]byte{0})
	}
	h.Write(p.Secret)
	return h.Sum(nil)
}

// Release lets the guest run. It is refused while the latch is closed.
func (m *Machine) Release(ctx context.Context) error {
	m.takes(ctx, "release")
	if err := m.mayBecome(Running); err != nil {
		return err
	}
	if !m.rec.Latch.Open {
		return m.latchClosed(fmt.Errorf("%w: it opens with %s", ErrLatchClosed, latchOpener(m.rec.Latch.Until)))
	}
	if err := m.helperEnded(); err != nil {
		return m.failed(fault.Failure, err)
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
		if r.Latch.Until == plan.UntilIDBlock { // or the platform had not let it run
			r.Latch.Verified = true
		}
	}, func() error {
		if err := (qmp.Cont{}).Execute(ctx, conn); err != nil {
			return m.said("release", err)
		}
		return nil
	})
}

// said is an error of QEMU or the platform. QEMU ends itself when the platform does
// not let the guest run: what it wrote then says why.
func (m *Machine) said(what string, err error) error {
	if errors.Is(err, qmp.ErrClosed) {
		if wrote := lastLines(m.dir.LogPath(rundir.QEMULog), 5); wrote != "" {
			err = fmt.Errorf("%w (it wrote: %s)", err, wrote)
		}
	}
	return m.failed(fault.QEMU, fmt.Errorf("%s: %w", what, err))
}

// failed is an error about the machine.
func (m *Machine) failed(kind fault.Kind, err error) error {
	return &fault.Error{Kind: kind, Op: m.rec.Name, Err: err}
}

func (m *Machine) latchClosed(err error) error {
	return &fault.Error{
		Kind: fault.Refused, Op: m.rec.Name, Err: err,
		Fix: `"vmlatch measure NAME" shows the owner what was loaded;` +
			` "vmlatch inject NAME PACKET" takes the owner's answer`,
	}
}

// open takes a paused machine through its latch: measured, its owner or broker asked, the secret
// injected, released; or released, and proven by its own evidence.
func (m *Machine) open(ctx context.Context, p *Plan, opt StartOptions) error {
	if p.Guest.Latch.Until == plan.UntilEvidence {
		if opt.AskingOwner != nil {
			opt.AskingOwner()
		}
		return m.prove(ctx, p, opt.Notice)
	}
	if p.Guest.Latch.Until == plan.UntilSecret {
		measurement, err := m.Measure(ctx)
		if err != nil {
			return err
		}
		if opt.AskingOwner != nil {
			opt.AskingOwner()
		}
		var packet *exchange.Packet
		if m.session != nil {
			packet, err = m.askPacket(ctx, p, measurement)
		} else {
			packet, err = m.AskOwner(ctx, p.guest, measurement, opt)
		}
		if err != nil {
			return err
		}
		if err := m.Inject(ctx, packet); err != nil {
			return err
		}
	}
	return m.Release(ctx)
}

func latchOpener(until string) string {
	if until == plan.UntilSecret {
		return "a secret that the platform accepts"
	}
	return "nothing that has happened yet"
}
