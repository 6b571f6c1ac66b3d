package rundir

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Process is a process that cannot be mistaken for another.
type Process struct {
	PID int
	fd  int
}

// openPID opens the process that has a pid now; the caller finds out whether it is the one that is
// meant. [ErrNotFound] means that there is none.
func openPID(pid int) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return &Process{PID: pid, fd: fd}, nil
}

// kill ends the process by SIGKILL, and returns when it has ended, or with ctx's error.
func (p *Process) kill(ctx context.Context) error {
	if err := p.Signal(unix.SIGKILL); err != nil {
		return err
	}
	return p.Wait(ctx)
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
	if p.fd < 0 {
		return fs.ErrClosed // and not an end that no poll would report
	}
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

// Close frees the handle; the process is not touched. It may be called more than once.
func (p *Process) Close() {
	if p.fd >= 0 {
		_ = unix.Close(p.fd)
		p.fd = -1
	}
}
