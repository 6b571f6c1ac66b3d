package rundir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/vmlatch/vmlatch/launcher/internal/procfs"
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
// their lock, with their sessions; besides them only processes that hold the lock and are of such a
// session: a helper that a guest has taken over could have given its lock to another process.
func (d *Dir) KillHelpers(ctx context.Context) error {
	moment, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	var all error
	var ended []int
	unknown := false
	for role, i := range d.recordedHelpers() {
		switch err := i.end(ctx, moment); {
		case errors.Is(err, errUnknownLife):
			unknown = true
		case err != nil:
			all = errors.Join(all, fmt.Errorf("end %s (%s, process %d): %w", d.Name, role, i.PID, err))
		default:
			ended = append(ended, i.PID) // each has a session of its own
		}
	}
	if len(ended) > 0 {
		all = errors.Join(all, d.killLeft(ctx, ended))
	}
	if unknown || len(ended) == 0 && all == nil { // of another namespace of pids, or not written down: the lock tells
		d.await(ctx, helperLock)
		all = errors.Join(all, d.killHolders(ctx, helperLock))
	}
	return all
}

// end waits for the end of a helper until a moment is over, and kills it then, with what it has
// started.
func (i *Identity) end(ctx, moment context.Context) error {
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
	for { // its pid is its session's as long as it has not been reaped, and so no other's
		left := sessionWithout(i.PID)
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, pid := range left {
			if p, err := openPID(pid); err == nil {
				if sessionOf(pid) == i.PID {
					err = p.kill(ctx)
				}
				p.Close()
				if err != nil {
					return err
				}
			}
		}
		if len(left) == 0 {
			return p.kill(ctx)
		}
	}
}

// sessionWithout are the processes of a session that live, but for its leader.
func sessionWithout(leader int) []int {
	all, _ := procfs.PIDs()
	return slices.DeleteFunc(all, func(pid int) bool {
		fields, err := statOf(pid)
		return pid == leader || err != nil || fields[0] == "Z" || fields[3] != strconv.Itoa(leader)
	})
}

// killLeft ends what helpers that have ended have left: processes that hold their lock, and are of
// a session of theirs.
func (d *Dir) killLeft(ctx context.Context, sessions []int) error {
	l, err := openLock(d.Path(helperLock), d.Name)
	if err != nil {
		return nil // there is none
	}
	defer l.close()
	if here, err := d.inPlace(); err != nil || !here {
		return err
	}
	if held, err := l.held(); err != nil || !held {
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

// Gone looks which helpers have ended while the VM lives: their roles, sorted.
func (e *Entry) Gone() (roles []string) {
	if !e.VMHeld || e.Record == nil {
		return nil
	}
	for role, i := range e.Record.Helpers {
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
