package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// follow copies a growing file until the VM has ended. inotify says when to
// look, so nothing is polled.
func follow(ctx context.Context, out io.Writer, f *os.File, d *rundir.Dir, e *rundir.Entry) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return err
	}
	notify := os.NewFile(uintptr(fd), "inotify") // non-blocking: reads end with Close
	defer notify.Close()
	if _, err := unix.InotifyAddWatch(fd, f.Name(), unix.IN_MODIFY); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = d.WaitEnd(ctx, e)
		_ = notify.SetReadDeadline(time.Unix(1, 0))
	}()
	t := &tail{f: f, out: out}
	buf := make([]byte, 4096)
	for {
		if err := t.copy(); err != nil {
			return err
		}
		if _, err := notify.Read(buf); err != nil {
			<-ended
			return errors.Join(t.copy(), ctx.Err()) // what came last
		}
	}
}

// tail copies what is appended to a log, also if its beginning is cut away meanwhile.
type tail struct {
	f    *os.File
	out  io.Writer
	last []byte // that was copied
}

// lastKept is how much of what was copied is remembered, to find its place again.
const lastKept = 1 << 10

func (t *tail) copy() error {
	if err := t.findPlace(); err != nil {
		return err
	}
	_, err := io.Copy(io.MultiWriter(t.out, t), t.f)
	return err
}

// Write remembers what was copied.
func (t *tail) Write(p []byte) (int, error) {
	t.last = append(t.last, p...)
	t.last = bytes.Clone(t.last[max(0, len(t.last)-lastKept):])
	return len(p), nil
}

// findPlace goes to where copying ended, if the file has become shorter since.
func (t *tail) findPlace() error {
	at, err := t.f.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	info, err := t.f.Stat()
	if err != nil || info.Size() >= at {
		return err
	}
	b, err := io.ReadAll(io.NewSectionReader(t.f, 0, info.Size()))
	if err != nil {
		return err
	}
	_, err = t.f.Seek(int64(copied(b, t.last)), io.SeekStart)
	return err
}

// copied is how much of a file's content was copied before, if last is what was copied last.
func copied(b, last []byte) int {
	if i := bytes.LastIndex(b, last); i >= 0 {
		return i + len(last)
	}
	for n := len(last) - 1; n > 0; n-- { // all but the end of it was cut away
		if bytes.HasPrefix(b, last[len(last)-n:]) {
			return n
		}
	}
	return 0
}
