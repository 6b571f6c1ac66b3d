package rundir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/internal/flock"
)

// Sweep ends abandoned VMs and removes the directories of ended ones. It
// returns the names of both. Every command calls it first; what it cannot clear
// away is in err, and no reason not to work on another VM.
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
	l.Trouble = r.removeLeftovers()
	entries, err := r.List(false)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if s := e.Status(); s != Abandoned && s != Ended {
			l.Entries = append(l.Entries, e)
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
func (r Root) removeLeftovers() error {
	unlock, err := r.lock()
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
			r.dir(filepath.Base(dir)[len(".new-"):]).restoreLogs()
		}
	}
	return err
}

// sweep clears one VM away, if it still has to be. It takes launch.lock first,
// so that nobody else can do the same, or use the name, meanwhile.
func (d *Dir) sweep(ctx context.Context) (was Status, err error) {
	if was, err = d.claim(); was == "" || err != nil {
		return "", err
	}
	defer d.Close()
	if was == Abandoned {
		if err := d.Kill(ctx); err != nil {
			return "", err
		}
	}
	unlock, err := d.root.lock()
	if err != nil {
		return "", err
	}
	defer unlock()
	e, err := d.entry()
	if err != nil {
		return "", err
	}
	return was, d.remove(e)
}

// claim takes launch.lock of a VM that is abandoned or has ended, and says which.
func (d *Dir) claim() (Status, error) {
	unlock, err := d.root.lock()
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
	if s := e.Status(); s != Abandoned && s != Ended {
		return "", nil
	} else if d.launch, err = flock.Open(d.Path(LaunchLock), 0, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return "", err
	} else {
		return s, nil
	}
}

// killTimeout bounds the wait for a killed process: the kernel may have to
// write back memory or wait for a device first.
const killTimeout = 30 * time.Second

// Kill ends every process that holds vm.lock, by SIGKILL, and returns when the
// lock is free. Nothing is sent to a process that does not hold the lock.
func (d *Dir) Kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	for {
		pids, err := d.Holders()
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			// A process that is ending shows no files any more, but the kernel
			// may not have let go of its locks yet.
			return d.waitFree(ctx)
		}
		for _, pid := range pids {
			if err := d.killHolder(ctx, pid); err != nil {
				return fmt.Errorf("end %s (process %d): %w", d.Name, pid, err)
			}
		}
	}
}

func (d *Dir) killHolder(ctx context.Context, pid int) error {
	p, err := d.openHolder(pid)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.Close()
	if err := p.Signal(unix.SIGKILL); err != nil {
		return err
	}
	return p.Wait(ctx)
}

// waitFree returns when nobody holds vm.lock.
func (d *Dir) waitFree(ctx context.Context) error {
	if d.vm != nil {
		return nil // it is ours
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	free := make(chan error, 1)
	go func() { // ends with the process if the lock is never let go
		f, err := flock.Open(d.Path(VMLock), 0, unix.LOCK_SH)
		if err == nil {
			err = f.Close()
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		free <- err
	}()
	select {
	case err := <-free:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s: its lock is held by a process whose files cannot be seen: %w", d.Name, ctx.Err())
	}
}

// KillIfHeld is Kill for a VM whose main process has just ended: only if the
// lock is still held are the others looked for.
func (d *Dir) KillIfHeld(ctx context.Context) error {
	if still, err := held(d.Path(VMLock)); err != nil || !still {
		return err
	}
	return d.Kill(ctx)
}

// Holders returns the processes that hold vm.lock, this one excepted.
func (d *Dir) Holders() ([]int, error) {
	var lock unix.Stat_t
	if err := unix.Stat(d.Path(VMLock), &lock); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil, nil
		}
		return nil, err
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err == nil && pid != os.Getpid() && holds(pid, &lock) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// holds says whether a process holds the lock file: it has it open, and by that
// very open file the exclusive lock (proc(5), fdinfo). Having it open is not
// enough, for other commands look at it. Processes of others cannot have it.
func holds(pid int, file *unix.Stat_t) bool {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return false
	}
	for _, fd := range fds {
		var st unix.Stat_t
		if unix.Stat(filepath.Join(dir, "fd", fd.Name()), &st) != nil || st.Dev != file.Dev || st.Ino != file.Ino {
			continue
		}
		info, _ := os.ReadFile(filepath.Join(dir, "fdinfo", fd.Name()))
		for line := range strings.Lines(string(info)) {
			if f := strings.Fields(line); len(f) > 4 && f[0] == "lock:" && f[2] == "FLOCK" && f[4] == "WRITE" {
				return true
			}
		}
	}
	return false
}

// Process is a process that cannot be mistaken for another one.
type Process struct {
	PID int
	fd  int
}

// OpenProcess finds the VM's process: the recorded one if it still holds
// vm.lock, else the first that does.
func (d *Dir) OpenProcess(hint int) (*Process, error) {
	if hint > 0 {
		if p, err := d.openHolder(hint); err == nil {
			return p, nil
		}
	}
	pids, err := d.Holders()
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		if p, err := d.openHolder(pid); err == nil {
			return p, nil
		}
	}
	return nil, fmt.Errorf("%s: %w", d.Name, ErrNotFound)
}

// openHolder opens a pidfd and then checks that the process behind it holds
// the lock, so that a reused pid is never taken for the VM.
func (d *Dir) openHolder(pid int) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		if errors.Is(err, unix.ESRCH) {
			return nil, ErrNotFound
		}
		return nil, err
	}
	p := &Process{PID: pid, fd: fd}
	var lock unix.Stat_t
	if unix.Stat(d.Path(VMLock), &lock) != nil || !holds(pid, &lock) {
		p.Close()
		return nil, ErrNotFound
	}
	return p, nil
}

// Signal sends a signal; a process that has ended is not an error.
func (p *Process) Signal(s unix.Signal) error {
	if err := unix.PidfdSendSignal(p.fd, s, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// Wait returns when the process has ended, reaped or not, or with ctx's error.
func (p *Process) Wait(ctx context.Context) error {
	// An eventfd makes the wait end with the context, without polling.
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(wake)
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		_, _ = unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	defer func() {
		if !stop() {
			<-done // wake must not be closed under it
		}
	}()
	for {
		fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case fds[0].Revents != 0:
			return nil
		case fds[1].Revents != 0:
			return ctx.Err()
		}
	}
}

// WaitEnd returns when the VM's process has ended, or with ctx's error.
func (d *Dir) WaitEnd(ctx context.Context, e *Entry) error {
	hint := 0
	if e.Record != nil {
		hint = e.Record.PID
	}
	p, err := d.OpenProcess(hint)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.Close()
	return p.Wait(ctx)
}

// Close frees the handle; the process is not touched.
func (p *Process) Close() { _ = unix.Close(p.fd) }
