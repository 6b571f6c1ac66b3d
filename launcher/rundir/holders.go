package rundir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/internal/flock"
)

// pin fixes which VM of the name the Dir is about: the one whose vm.lock lies there.
// The caller holds the global lock. A damaged directory may lack vm.lock.
func (d *Dir) pin() error {
	id, err := openLock(d.Path(VMLock), d.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	r, err := readRecord(d.Path(recordFile))
	if err != nil {
		id.close()
		return err
	}
	d.id = id
	d.setRecorded(r)
	return nil
}

// identity is vm.lock of the VM that the Dir is about; nil if it had ended, and been
// cleared away, before it was looked at.
func (d *Dir) identity() (*lockFile, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, fmt.Errorf("%s: directory: %w", d.Name, fs.ErrClosed)
	}
	return d.id, nil
}

// Same reports whether two Dirs are about the same VM, and not only the same name.
func (d *Dir) Same(other *Dir) bool {
	a, err1 := d.identity()
	b, err2 := other.identity()
	if err1 != nil || err2 != nil || a == nil || b == nil {
		return false
	}
	sa, err1 := a.stat()
	sb, err2 := b.stat()
	return err1 == nil && err2 == nil && sa.Dev == sb.Dev && sa.Ino == sb.Ino
}

// Kill ends every process of the VM, its helpers too, by SIGKILL, and returns when they
// have gone.
func (d *Dir) Kill(ctx context.Context) error {
	return errors.Join(d.killVM(ctx), d.KillHelpers(ctx))
}

// killVM ends the VM's processes: the one that is written down, and where that is not QEMU itself,
// or none is, every other that holds vm.lock, this one excepted.
func (d *Dir) killVM(ctx context.Context) error {
	id, err := d.identity()
	if id == nil || err != nil {
		return err
	}
	i, wraps := d.recorded()
	if i != nil {
		err = d.killRecorded(ctx, id, i)
		if !wraps {
			return err
		}
	}
	if !d.holdsVM() {
		return errors.Join(err, id.kill(ctx))
	}
	pids, err2 := id.holders() // the lock is ours; others may hold it through us
	return errors.Join(err, err2, id.each(pids, func(pid int) error { return id.killOne(ctx, pid) }))
}

// holdsVM reports whether vm.lock is held by this process.
func (d *Dir) holdsVM() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.vm != nil
}

// KillIfHeld is Kill for a VM whose main process has just ended: others are looked for
// only if a lock is still held.
func (d *Dir) KillIfHeld(ctx context.Context) error {
	return errors.Join(d.killRest(ctx), d.KillHelpers(ctx))
}

func (d *Dir) killRest(ctx context.Context) error {
	id, err := d.identity()
	if id == nil || err != nil {
		return err
	}
	if i, wraps := d.recorded(); i != nil && !wraps {
		return nil
	}
	if still, err := id.held(); err != nil || !still {
		return err
	}
	return id.kill(ctx)
}

// Holders returns the processes that hold vm.lock, this one excepted.
func (d *Dir) Holders() ([]int, error) {
	id, err := d.identity()
	if id == nil || err != nil {
		return nil, err
	}
	return id.holders()
}

// OpenProcess finds the VM's process: the recorded one if it still holds vm.lock, else
// the first that does. [ErrNotFound] means that no process holds it, but perhaps this
// one.
func (d *Dir) OpenProcess(hint int) (*Process, error) { return d.openProcess(hint, freeTimeout) }

func (d *Dir) openProcess(hint int, last time.Duration) (*Process, error) {
	id, err := d.identity()
	if err != nil {
		return nil, err
	}
	if id == nil {
		return nil, fmt.Errorf("%s: %w", d.Name, ErrNotFound)
	}
	i, wraps := d.recorded()
	if i != nil {
		p, err := i.openOr(id)
		if errors.Is(err, ErrNotFound) {
			err = fmt.Errorf("%s: %w", d.Name, err)
		}
		if !wraps || !errors.Is(err, ErrNotFound) {
			return p, err
		}
	}
	if hint > 0 {
		if p, err := id.open(hint); err == nil {
			return p, nil
		}
	}
	pids, err := id.holders()
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		if p, err := id.open(pid); !errors.Is(err, ErrNotFound) {
			return p, err
		}
	}
	if !d.holdsVM() {
		if err := id.unseen(context.Background(), last); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s: %w", d.Name, ErrNotFound)
}

// WaitEnd returns when no process holds vm.lock any more, or with ctx's error.
func (d *Dir) WaitEnd(ctx context.Context, e *Entry) error {
	hint := 0
	if e.Record != nil {
		hint = e.Record.PID
	}
	for {
		p, err := d.openProcess(hint, 0)
		switch {
		case errors.Is(err, ErrNotFound):
			d.AwaitLogs(ctx)
			return nil
		case errors.Is(err, errUnseen):
			id, err := d.identity()
			if err != nil {
				return err
			}
			err = id.free(ctx)
			d.AwaitLogs(ctx)
			return err
		case err != nil:
			return err
		}
		err = p.Wait(ctx)
		p.Close()
		if err != nil {
			return err
		}
	}
}

// AwaitLaunch returns when no command is at work on the VM any more, or with ctx's
// error.
func (d *Dir) AwaitLaunch(ctx context.Context) error {
	l, err := openLock(d.Path(LaunchLock), d.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer l.close()
	return l.free(ctx)
}

// LockOwner makes the lock that the owner's command and whatever it starts inherit,
// by which they can be found. The caller closes it once they have it.
func (d *Dir) LockOwner() (*os.File, error) { return d.lockFor(ownerLock) }

// KillOwner ends what the owner's command has left running.
func (d *Dir) KillOwner(ctx context.Context) error { return d.killHolders(ctx, ownerLock) }

// killOthers ends what is not the VM itself.
func (d *Dir) killOthers(ctx context.Context) error {
	return errors.Join(d.KillOwner(ctx), d.KillHelpers(ctx))
}

func (d *Dir) lockFor(name string) (*os.File, error) {
	return flock.Try(d.Path(name), unix.O_CREAT, unix.LOCK_EX)
}

// killHolders ends the processes that hold a lock of this VM, and no later one's.
func (d *Dir) killHolders(ctx context.Context, name string) error {
	l, err := openLock(d.Path(name), d.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer l.close()
	if still, err := l.held(); err != nil || !still {
		return err
	}
	if here, err := d.inPlace(); err != nil || !here {
		return err
	}
	return l.kill(ctx)
}

// inPlace reports whether the directory is still this VM's, so that a file which was
// opened before is its own.
func (d *Dir) inPlace() (bool, error) {
	d.mu.Lock()
	locked := d.launch != nil
	d.mu.Unlock()
	if locked {
		return true, nil // until this process lets another remove it
	}
	now := d.root.dir(d.Name)
	if err := now.pin(); err != nil {
		return false, err
	}
	defer now.Close()
	return d.Same(now), nil
}
