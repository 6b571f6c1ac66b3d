package plan

import (
	"time"

	"github.com/vmlatch/vmlatch/launcher/spec"
)

// Latch is the table [latch]: what must happen before the guest may run.
type Latch struct {
	Until string `toml:"until"`
	// Owner is a command that reads the measurement from its standard input and
	// writes the secret packet to its standard output.
	Owner   []string      `toml:"owner"`
	Timeout spec.Duration `toml:"timeout"` // for Owner, or for the broker
}

const defaultTimeout = spec.Duration(5 * time.Minute)

// What a latch can wait for.
const (
	UntilSecret   = "secret"   // an accepted secret packet
	UntilEvidence = "evidence" // the guest runs, and has no secret before its broker accepts its evidence
	UntilIDBlock  = "id-block" // the platform compares the launch with a signed ID block
	UntilNothing  = "nothing"  // explicit: the launch is not verified
	UntilNone     = "none"     // plain VMs have no latch
)
