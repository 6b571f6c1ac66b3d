package flock

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Between two looks at a lock that is held. The last is for locks that were let go
// without a close, and for kernels that give no more watches to this user.
const (
	firstDelay  = time.Millisecond
	watchDelay  = time.Second
	blindlyWait = 50 * time.Millisecond
)

// watch tells when a process closes a lock file that it could write to. A process that
// holds a lock for long has opened its file so, and one that only looks has not: a look
// must not wake those that wait.
type watch struct {
	events *os.File // nil if the kernel gives none
}

// watchClosing watches this very file, and not a later one at its path.
func watchClosing(lock *os.File) *watch {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return &watch{}
	}
	err = Control(lock, func(n int) error {
		_, err := unix.InotifyAddWatch(fd, fmt.Sprintf("/proc/self/fd/%d", n), unix.IN_CLOSE_WRITE)
		return err
	})
	if err != nil {
		_ = unix.Close(fd)
		return &watch{}
	}
	return &watch{os.NewFile(uintptr(fd), "inotify")}
}

// longestDelay bounds the time between two looks.
func (w *watch) longestDelay() time.Duration {
	if w.events == nil {
		return blindlyWait
	}
	return watchDelay
}

// wait returns when the file has been closed, then with true, after a delay, or
// with ctx.
func (w *watch) wait(ctx context.Context, delay time.Duration) (closed bool) {
	if w.events == nil {
		t := time.NewTimer(delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		return false
	}
	_ = w.events.SetReadDeadline(time.Now().Add(delay))
	if ctx.Err() != nil { // asked after the deadline is set, or the one below could come before it
		return false
	}
	stop := context.AfterFunc(ctx, func() { _ = w.events.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var events [32 * unix.SizeofInotifyEvent]byte
	_, err := w.events.Read(events[:])
	return err == nil
}

func (w *watch) close() {
	if w.events != nil {
		_ = w.events.Close()
	}
}
