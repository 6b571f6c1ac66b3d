package rundir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/internal/flock"
)

// Open takes launch.lock of a VM that is alive, for a command that changes it.
// A command already at work is waited for, up to the given time and until ctx ends;
// after that time the error is [ErrBusy].
func (r Root) Open(ctx context.Context, name string, wait time.Duration) (*Dir, *Record, error) {
	if err := CheckName(name); err != nil {
		return nil, nil, err
	}
	d := r.dir(name)
	limited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		rec, err := r.tryOpen(ctx, d)
		if err == nil {
			return d, rec, nil
		}
		if !errors.Is(err, ErrBusy) {
			return nil, nil, err
		}
		waited := d.AwaitLaunch(limited)
		switch {
		case ctx.Err() != nil:
			return nil, nil, fmt.Errorf("%s: %w", name, ctx.Err())
		case limited.Err() != nil:
			return nil, nil, err
		case waited != nil:
			return nil, nil, waited
		}
	}
}

// tryOpen looks and locks under the global lock, so that what it saw is true.
func (r Root) tryOpen(ctx context.Context, d *Dir) (*Record, error) {
	unlock, err := r.lock(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, d.notAlive()
	}
	if err != nil {
		return nil, err
	}
	defer unlock()
	e, err := d.entry()
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, d.notAlive()
	case err != nil:
		return nil, err
	case e.LaunchHeld && e.VMHeld:
		return nil, fmt.Errorf("%s: %w", d.Name, ErrBusy)
	case e.Status() != Alive:
		return nil, d.notAlive()
	}
	if err := d.lockLaunch(ctx); err != nil {
		return nil, err
	}
	if err := d.pin(); err != nil {
		d.Unlock()
		return nil, err
	}
	return e.Record, nil
}

// lookBound is how long a look at launch.lock can stand in the way of taking it. It
// takes microseconds, so that the process that looks is stopped if it takes longer.
const lookBound = 5 * time.Second

// lockLaunch takes launch.lock, which no command holds: the caller has looked, under
// the global lock. Others may look at the same time, for a look takes no global lock.
func (d *Dir) lockLaunch(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, lookBound)
	defer cancel()
	f, err := flock.Open(limited, d.Path(LaunchLock), 0, unix.LOCK_EX)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return fmt.Errorf("%s: %w", d.Name, ErrBusy)
	}
	d.launch = f
	return err
}
