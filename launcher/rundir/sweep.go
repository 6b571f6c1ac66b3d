package rundir

import (
	"context"
	"errors"
	"os"
	"path/filepath"
)

// Sweep ends abandoned VMs and removes the directories of ended ones. It
// returns the names of both. Every command calls it first; what it cannot clear
// away is in err, and is not a reason not to work on another VM.
func (r Root) Sweep(ctx context.Context) (killed, removed []string, err error) {
	l, err := r.SweepList(ctx, false)
	return l.Killed, l.Removed, errors.Join(l.Trouble, err)
}

// Listing is what a sweep has found.
type Listing struct {
	Entries         []*Entry // that are left as they are
	Killed, Removed []string
	Trouble         error // what could not be cleared away
}

// SweepList is Sweep and List, with one look at each VM. It fails only if the run
// directory cannot be looked at.
func (r Root) SweepList(ctx context.Context, ended bool) (l Listing, err error) {
	if _, err := os.Lstat(r.Run); err == nil { // else nothing was ever started here
		if err := r.sweep(ctx, &l); err != nil {
			return l, err
		}
	}
	if ended {
		old, err := r.ended(l.Entries)
		if err != nil {
			return l, err
		}
		l.Entries = append(l.Entries, old...)
	}
	return l, nil
}

func (r Root) sweep(ctx context.Context, l *Listing) error {
	l.Trouble = r.removeLeftovers(ctx)
	entries, unreadable, err := r.list(ctx)
	if err != nil {
		return err
	}
	l.Trouble = errors.Join(l.Trouble, unreadable)
	for _, e := range entries {
		if s := e.Status(); s != Abandoned && s != Ended {
			l.Entries = append(l.Entries, e)
			l.Trouble = errors.Join(l.Trouble, r.dir(e.Name).boundLogs(r.LogMax))
			continue
		}
		switch was, err := r.dir(e.Name).sweep(ctx); {
		case err != nil:
			l.Trouble = errors.Join(l.Trouble, err)
			l.Entries = append(l.Entries, e)
		case was == Abandoned:
			l.Killed = append(l.Killed, e.Name)
		case was == Ended:
			l.Removed = append(l.Removed, e.Name)
		default: // others have cleared it away, or use its name again
			if now, err := r.Peek(e.Name); err == nil && now != nil {
				l.Entries = append(l.Entries, now)
			}
		}
	}
	return nil
}

// removeLeftovers finishes what an interrupted Create or removal began.
func (r Root) removeLeftovers(ctx context.Context) error {
	unlock, err := r.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	for _, pattern := range []string{".new-*", ".old-*"} {
		dirs, _ := filepath.Glob(filepath.Join(r.Run, pattern))
		for _, dir := range dirs {
			if e := removeFiles(dir); e != nil {
				err = errors.Join(err, e)
				continue
			}
			if name := filepath.Base(dir)[len(".new-"):]; CheckName(name) == nil { // not "" or ".."
				r.dir(name).restoreLogs()
			}
		}
	}
	return err
}

// sweep clears one VM away, if it still has to be. It takes launch.lock first,
// so that no other command can do the same, or use the name, meanwhile.
func (d *Dir) sweep(ctx context.Context) (was Status, err error) {
	if was, err = d.claim(ctx); was == "" || err != nil {
		return "", err
	}
	defer d.Close()
	if was == Abandoned {
		if err := d.Kill(ctx); err != nil {
			return "", err
		}
	}
	if err := d.killOthers(ctx); err != nil { // now, as it is not done under the lock
		return "", err
	}
	unlock, err := d.root.lock(ctx)
	if err != nil {
		return "", err
	}
	defer unlock()
	e, err := d.entry()
	if err != nil {
		return "", err
	}
	return was, d.remove(ctx, e)
}

// claim takes launch.lock of a VM that is abandoned or has ended, and says which.
func (d *Dir) claim(ctx context.Context) (Status, error) {
	unlock, err := d.root.lock(ctx)
	if err != nil {
		return "", err
	}
	defer unlock()
	e, err := d.entry()
	if errors.Is(err, ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	s := e.Status()
	if s != Abandoned && s != Ended {
		return "", nil
	}
	if err := d.lockLaunch(ctx); err != nil {
		return "", err
	}
	if err := d.pin(); err != nil {
		d.Unlock()
		return "", err
	}
	return s, nil
}
