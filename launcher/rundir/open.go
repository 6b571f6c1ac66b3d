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
	if err := d.lockLaunch(); err != nil {
		return nil, err
	}
	if err := d.pin(); err != nil {
		d.Unlock()
		return nil, err
	}
	return e.Record, nil
}

// lockLaunch takes launch.lock. It is opened for writing, so that the end of the lock
// wakes those who wait for it (package flock).
func (d *Dir) lockLaunch() (err error) {
	d.launch, err = flock.Try(d.Path(LaunchLock), unix.O_RDWR, unix.LOCK_EX)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("%s: %w", d.Name, ErrBusy)
	}
	return err
}
