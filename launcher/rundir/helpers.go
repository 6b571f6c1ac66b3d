package rundir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"
)

// LockHelpers makes the lock that the VM's helpers inherit, by which they can be
// found. The caller closes it once they have it.
func (d *Dir) LockHelpers() (*os.File, error) { return d.lockFor(helperLock) }

// LockLogs makes the lock that the keeper of the VM's logs inherits. The caller closes it
// once the keeper has it.
func (d *Dir) LockLogs() (*os.File, error) { return d.lockFor(keeperLock) }

// helperTimeout is how long the helpers of a VM that has ended may take to end: the keeper of the
// logs to write down its last words, at most what its pipes hold; a TPM to write its state.
const helperTimeout = 2 * time.Second

// KillHelpers ends helpers that have not ended with QEMU. They get a moment for it: one may be
// writing down what it must not lose. Those that are written down are ended whatever they did to
// their lock, and besides them only processes of their sessions: a helper that a guest has taken
// over could have given its lock to another process.
func (d *Dir) KillHelpers(ctx context.Context) error {
	moment, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	var all error
	var sessions []int
	for role, i := range d.recordedHelpers() {
		switch err := i.end(moment, ctx); {
		case errors.Is(err, errUnknownLife): // of another namespace of pids: the lock tells
		case err != nil:
			all = errors.Join(all, fmt.Errorf("end %s (%s, process %d): %w", d.Name, role, i.PID, err))
		default:
			sessions = append(sessions, i.PID) // each has its own
		}
	}
	if len(sessions) == 0 && all == nil { // none was written down that can be seen
		d.await(ctx, helperLock)
		return d.killHolders(ctx, helperLock)
	}
	return errors.Join(all, d.killSessions(ctx, sessions))
}

// end waits for the end of a process until a moment is over, and kills it then.
func (i *Identity) end(moment, ctx context.Context) error {
	p, err := i.open()
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.Close()
	if p.Wait(moment) == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	return p.kill(ctx)
}

// killSessions ends what helpers have started, or left: processes that hold their lock, and are in
// a session of theirs.
func (d *Dir) killSessions(ctx context.Context, sessions []int) error {
	l, err := openLock(d.Path(helperLock), d.Name)
	if err != nil {
		return nil // there is none
	}
	defer l.close()
	if !l.blind {
		if still, err := l.held(); err != nil || !still {
			return err
		}
	}
	if here, err := d.inPlace(); err != nil || !here {
		return err
	}
	pids, err := l.holders()
	if err != nil {
		return err
	}
	pids = slices.DeleteFunc(pids, func(pid int) bool { return !slices.Contains(sessions, sessionOf(pid)) })
	return l.each(pids, func(pid int) error { return l.killOne(ctx, pid) })
}

// sessionOf is a process's session (proc(5), /proc/PID/stat, field 6); 0 if it has ended.
func sessionOf(pid int) int {
	fields, err := statOf(pid)
	if err != nil {
		return 0
	}
	session, _ := strconv.Atoi(fields[3])
	return session
}

// gone are the roles of helpers that have ended, sorted.
func (r *Record) gone() (roles []string) {
	for role, i := range r.Helpers {
		if lives, known := i.Lives(); known && !lives {
			roles = append(roles, role)
		}
	}
	slices.Sort(roles)
	return roles
}

// AwaitLogs returns when all that a VM said before it ended is in its logs, or when that
// takes too long. Logs without a keeper are always complete.
func (d *Dir) AwaitLogs(ctx context.Context) { d.await(ctx, keeperLock) }

// await waits until a lock is free, if it is there.
func (d *Dir) await(ctx context.Context, name string) {
	l, err := openLock(d.Path(name), d.Name)
	if err != nil {
		return
	}
	defer l.close()
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	_ = l.free(ctx)
}
