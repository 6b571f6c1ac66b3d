package flock

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A lock that is held for moments is looked at again and again for a while, at random
// times that come less and less often: of many processes that want it, one finds it free
// soon, and they do not all wake at each of its ends. After that its end is waited for;
// longest is for locks that were let go without a close, and blindly for kernels that
// give this user no more watches.
const (
	firstDelay = 200 * time.Microsecond
	lastDelay  = 10 * time.Millisecond
	brief      = 500 * time.Millisecond
	longest    = time.Second
	blindly    = 50 * time.Millisecond
)

// watch tells when to look at a lock again. The kernel tells when a process closes a
// lock file that it could write to. A process that holds a lock for long has opened its
// file so, and one that only looks has not: a look must not wake those that wait.
type watch struct {
	lock   *os.File
	events *os.File // nil: not watched yet, or the kernel gives no watch
	blind  bool     // the kernel gives no watch
	delay  time.Duration
	begun  time.Time // of the time for which the lock is looked at again and again
}

// wait returns when the lock should be looked at, or with ctx.
func (w *watch) wait(ctx context.Context) {
	if w.begun.IsZero() {
		w.begun, w.delay = time.Now(), firstDelay
	}
	switch {
	case time.Since(w.begun) < brief:
		sleep(ctx, w.delay/2+rand.N(w.delay))
		w.delay = min(2*w.delay, lastDelay)
	case w.blind:
		sleep(ctx, blindly/2+rand.N(blindly))
	case w.events == nil:
		w.open() // and look again: the end may just have been missed
	case w.closed(ctx, longest): // the kernel lets go of the lock just after it tells
		w.begun = time.Time{}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// open watches this very file, and not a later one at its path.
func (w *watch) open() {
	w.blind = true
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return
	}
	err = Control(w.lock, func(n int) error {
		_, err := unix.InotifyAddWatch(fd, fmt.Sprintf("/proc/self/fd/%d", n), unix.IN_CLOSE_WRITE)
		return err
	})
	if err != nil {
		_ = unix.Close(fd)
		return
	}
	w.events, w.blind = os.NewFile(uintptr(fd), "inotify"), false
}

// closed reports, within a time and until ctx ends, that the file has been closed.
func (w *watch) closed(ctx context.Context, within time.Duration) bool {
	_ = w.events.SetReadDeadline(time.Now().Add(within))
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
