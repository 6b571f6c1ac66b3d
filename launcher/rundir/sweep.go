package rundir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Sweep ends abandoned VMs and removes the directories of ended ones. It
// returns the names of both. Every command calls it first.
func (r Root) Sweep(ctx context.Context) (killed, removed []string, err error) {
	if _, err := os.Lstat(r.Run); err != nil {
		return nil, nil, nil // nothing was ever started here
	}
	entries, err := r.List(false)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		d := r.dir(e.Name)
		switch e.Status() {
		case Abandoned:
			if e := d.Kill(ctx); e != nil {
				err = errors.Join(err, e)
				continue
			}
			killed = append(killed, d.Name)
		case Ended:
			removed = append(removed, d.Name)
		default:
			continue
		}
		if e := d.removeIfEnded(); e != nil {
			err = errors.Join(err, e)
		}
	}
	return killed, removed, err
}

func (d *Dir) removeIfEnded() error {
	unlock, err := d.root.lock()
	if err != nil {
		return err
	}
	defer unlock()
	e, err := d.entry()
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil || e.VMHeld || e.LaunchHeld {
		return err
	}
	return d.remove(e)
}

// killTimeout bounds the wait for a killed process: the kernel may have to
// write back memory or wait for a device first.
const killTimeout = 30 * time.Second

// Kill ends every process that holds vm.lock, by SIGKILL, and waits for their
// ends. Nothing is sent to a process that does not hold the lock.
func (d *Dir) Kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	for {
		pids, err := d.Holders()
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			p, err := d.openHolder(pid)
			if errors.Is(err, ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			err = p.Signal(unix.SIGKILL)
			if err == nil {
				err = p.Wait(ctx)
			}
			p.Close()
			if err != nil {
				return fmt.Errorf("end %s (process %d): %w", d.Name, pid, err)
			}
		}
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

// Holders returns the processes that have vm.lock open, this one excepted.
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

// holds says whether a process has the file open. Processes of others, which
// cannot be read, cannot have it.
func holds(pid int, file *unix.Stat_t) bool {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	fds, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, fd := range fds {
		var st unix.Stat_t
		if unix.Stat(filepath.Join(dir, fd.Name()), &st) == nil && st.Dev == file.Dev && st.Ino == file.Ino {
			return true
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

// Close frees the handle; the process is not touched.
func (p *Process) Close() { _ = unix.Close(p.fd) }
