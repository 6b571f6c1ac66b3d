package launcher

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/qmp"
)

// Trace is told what the launcher does. It never sees a secret.
type Trace struct {
	// Step is told the name of each step before it is taken: of a start, reserve,
	// session, sockets, slot, record, helper, key, fork, started, connect, query, paused; then
	// measure, owner, inject, release, prove, accepted, received, and of an end stop, kill.
	// nil is fine.
	Step func(name string)
	// QMP gets a debug record for each command to a VM's QEMU; nil is fine. What a host's
	// QEMU is asked before a start, and events, are not commands to a VM.
	QMP *slog.Logger
}

type traceKey struct{}

// WithTrace returns a context whose launches and commands are traced.
func WithTrace(ctx context.Context, t Trace) context.Context {
	return context.WithValue(ctx, traceKey{}, t)
}

// TraceOf is the trace of a context; one that is told nothing if there is none.
func TraceOf(ctx context.Context) Trace {
	t, _ := ctx.Value(traceKey{}).(Trace)
	if t.Step == nil {
		t.Step = func(string) {}
	}
	return t
}

// step tells that a step comes next.
func step(ctx context.Context, name string) { TraceOf(ctx).Step(name) }

// takes tells that a step comes next, and keeps it for the record, which is written later. Of one
// that is taken again in a row the last counts.
func (m *Machine) takes(ctx context.Context, name string) {
	if n := len(m.rec.Steps); n > 0 && m.rec.Steps[n-1].Name == name {
		m.rec.Steps = m.rec.Steps[: n-1 : n-1]
	}
	m.rec.Steps = keep(m.rec.Steps, name)
	step(ctx, name)
}

// maxSteps bounds what a record keeps: a held VM may be measured any number of times.
const maxSteps = 64

// keep appends a step that begins now. It never shares memory with another record.
func keep(steps []rundir.Step, name string) []rundir.Step {
	if len(steps) >= maxSteps {
		return steps
	}
	return append(slices.Clip(steps), rundir.Step{Name: name, At: time.Now().UTC()})
}

func qmpOptions(ctx context.Context) qmp.Options { return qmp.Options{Logger: TraceOf(ctx).QMP} }
