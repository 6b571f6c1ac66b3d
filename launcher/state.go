package launcher

import (
	"errors"
	"fmt"
)

// State is where a machine is in its life.
type State string

// States of a machine.
const (
	Planned     State = "planned"
	Launching   State = "launching"
	Paused      State = "paused"      // no guest instruction has run
	Measured    State = "measured"    // paused, and the platform has shown its measurement
	Provisioned State = "provisioned" // paused, and the platform has accepted the secret
	Running     State = "running"
	Stopping    State = "stopping"
	Stopped     State = "stopped"
	Failed      State = "failed"
)

// transitions lists the states that may follow each state.
var transitions = map[State][]State{
	Planned:     {Launching},
	Launching:   {Paused, Failed},
	Paused:      {Measured, Running, Stopping, Stopped, Failed},
	Measured:    {Measured, Provisioned, Running, Stopping, Stopped, Failed},
	Provisioned: {Provisioned, Running, Stopping, Stopped, Failed},
	Running:     {Stopping, Stopped, Failed},
	Stopping:    {Stopping, Stopped, Failed},
	Stopped:     {},
	Failed:      {},
}

// StateError is a step that the machine's state does not allow.
type StateError struct{ From, To State }

func (e *StateError) Error() string {
	if e.From == e.To {
		return fmt.Sprintf("it is %s already", e.To)
	}
	return fmt.Sprintf("a machine that is %s cannot become %s", e.From, e.To)
}

func checkTransition(from, to State) error {
	for _, s := range transitions[from] {
		if s == to {
			return nil
		}
	}
	return &StateError{from, to}
}

var (
	// ErrLatchClosed means that nothing has proven the guest right yet.
	ErrLatchClosed = errors.New("the latch is closed")
	// ErrNotMeasurable means that the technology has no launch measurement over QMP.
	ErrNotMeasurable = errors.New("this VM has no launch measurement")
)
