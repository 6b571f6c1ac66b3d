package rundir

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/vmlatch/vmlatch/firmware/regular"
)

// Failure is a start that came to nothing: nothing of the VM is left but this.
type Failure struct {
	Schema string    `json:"schema"`
	At     time.Time `json:"at"`
	Spec   string    `json:"spec,omitempty"` // file
	Reason string    `json:"reason"`
	Hints  []string  `json:"hints,omitempty"`
	Code   int       `json:"exit-code"`
}

// FailureSchema names the format of failures.
const FailureSchema = "vmlatch.failure/1"

const (
	failureFile      = "failure.json"
	failureTemporary = ".failure.json.new"
	maxFailure       = 64 << 10
	maxReason        = 8 << 10
)

// NoteFailure keeps why a start of a name came to nothing, next to the logs of the run
// before it.
func (r Root) NoteFailure(ctx context.Context, name string, f Failure) error {
	if err := CheckName(name); err != nil {
		return err
	}
	f.Schema = FailureSchema
	f.Reason = f.Reason[:min(len(f.Reason), maxReason)]
	b, err := json.Marshal(f)
	if err != nil || len(b) > maxFailure {
		return err
	}
	unlock, err := r.lock(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		unlock, err = func() {}, nil // nothing was ever started there
	}
	if err != nil {
		return err
	}
	defer unlock()
	d := r.dir(name)
	if err := d.makeState(); err != nil {
		return err
	}
	if err := replaceFile(d.LogPath(failureTemporary), d.LogPath(failureFile), b); err != nil {
		_ = os.Remove(d.LogPath(failureTemporary))
		_ = os.Remove(d.State) // if nothing else is in it
		return err
	}
	return nil
}

// failure is the name's last failed start; nil if there is none that can be read.
func (d *Dir) failure() *Failure {
	b, err := regular.ReadNoFollow(d.LogPath(failureFile), maxFailure)
	if err != nil {
		return nil
	}
	var f Failure
	if json.Unmarshal(b, &f) != nil || f.Schema != FailureSchema {
		return nil
	}
	return &f
}
