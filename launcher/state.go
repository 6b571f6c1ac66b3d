package launcher

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vmlatch/vmlatch/launcher/fault"
)

// State is where a machine is in its life.
type State string

// States of a machine.
const (
	Launching   State = "launching"
	Paused      State = "paused"      // no guest instruction has run
	Measured    State = "measured"    // paused, and the platform has shown its measurement
	Provisioned State = "provisioned" // paused, and the platform has accepted the secret
	Running     State = "running"
	Stopping    State = "stopping" // asked to end
	Stopped     State = "stopped"
)

// transitions lists the states that may follow each state. A machine that has ended
// has no record of its own that could change; "stopped" is how its end is shown.
var transitions = map[State][]State{
	Launching:   {Paused},
	Paused:      {Measured, Running, Stopping, Stopped},
	Measured:    {Measured, Provisioned, Running, Stopping, Stopped},
	Provisioned: {Provisioned, Running, Stopping, Stopped},
	Running:     {Stopping, Stopped},
	Stopping:    {Stopping, Stopped},
	Stopped:     {},
}

// mayBecome is an error that names both states if the one may not follow the other.
func (m *Machine) mayBecome(to State) error {
	from := m.State()
	if slices.Contains(transitions[from], to) {
		return nil
	}
	err := fmt.Errorf("a machine that is %s cannot become %s", from, to)
	if from == to {
		err = fmt.Errorf("it is already %s", to)
	}
	return &fault.Error{Kind: fault.State, Op: m.rec.Name, Err: err}
}

var (
	// ErrLatchClosed means that the guest has not been verified yet.
	ErrLatchClosed = errors.New("the latch is closed")
	// ErrNotMeasurable means that the technology has no launch measurement over QMP.
	ErrNotMeasurable = errors.New("this VM has no launch measurement")
)
