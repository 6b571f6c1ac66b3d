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
	Proving     State = "proving"  // running, and not accepted by its broker yet
	// Of commands that were sent, and whose answer is not known:
	Provisioning State = "provisioning" // measured; the platform may have accepted the secret
	Releasing    State = "releasing"    // running, or about to
	// Of a start that came to nothing:
	Failed  State = "failed"
	Stopped State = "stopped"
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

var errNotReleased = errors.New("it has not been released")

var (
	// ErrLatchClosed means that the guest has not been verified yet.
	ErrLatchClosed = errors.New("the latch is closed")
	// ErrUnknown means that a command's answer was lost: it may have been carried out.
	ErrUnknown = errors.New("whether it was done is not known")
	// ErrOtherPacket means that the guest has a secret, and was given a different one.
	ErrOtherPacket = errors.New("the platform has taken another secret packet for this launch")
	// ErrNotMeasurable means that the technology has no launch measurement over QMP.
	ErrNotMeasurable = errors.New("this VM has no launch measurement")
)
