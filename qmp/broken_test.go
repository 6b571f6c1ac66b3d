package qmp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestClosedError: the ways in which a peer disappears are one error, others are part
// of it.
func TestClosedError(t *testing.T) {
	for _, gone := range []error{io.EOF, net.ErrClosed, unix.EPIPE, unix.ECONNRESET} {
		if err := closedError(&net.OpError{Op: "write", Err: gone}); err != ErrClosed {
			t.Errorf("%v: %v, want ErrClosed alone", gone, err)
		}
	}
	if err := closedError(unix.ENOBUFS); !errors.Is(err, ErrClosed) || !errors.Is(err, unix.ENOBUFS) {
		t.Errorf("another error: %v, want ErrClosed and ENOBUFS", err)
	}
}

// brokenConn is a connection whose next write does as it is told.
type brokenConn struct {
	net.Conn
	next func() (int, error)
}

func (c *brokenConn) Write(b []byte) (int, error) {
	if next := c.next; next != nil {
		c.next = nil
		return next()
	}
	return c.Conn.Write(b)
}

// negotiated is a connection to a QEMU that says yes to everything.
func negotiated(t *testing.T) (*Conn, *brokenConn) {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		fmt.Fprintln(theirs, `{"QMP": {"version": {"qemu": {"micro": 0, "minor": 1, "major": 11}}}}`)
		b := make([]byte, 4096)
		for id := 1; ; id++ {
			if _, err := theirs.Read(b); err != nil {
				return
			}
			fmt.Fprintf(theirs, "{\"return\": {}, \"id\": %d}\n", id)
		}
	}()
	b := &brokenConn{Conn: ours}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := NewConn(ctx, b, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, b
}

// TestFailedWrites: what an error says depends on why the write failed, and whether the
// connection goes on, on what was written.
func TestFailedWrites(t *testing.T) {
	for what, c := range map[string]struct {
		n         int
		err, want error
		ctxEnds   bool
		goesOn    bool
	}{
		"the context ends before a byte":   {0, os.ErrDeadlineExceeded, context.Canceled, true, true},
		"the context ends in the middle":   {3, os.ErrDeadlineExceeded, context.Canceled, true, false},
		"QEMU ends as the context does":    {3, unix.EPIPE, ErrClosed, true, false},
		"a deadline that is not a context": {3, os.ErrDeadlineExceeded, os.ErrDeadlineExceeded, false, false},
	} {
		conn, broken := negotiated(t)
		ctx, cancel := context.WithCancel(t.Context())
		broken.next = func() (int, error) {
			if c.ctxEnds {
				cancel()
			}
			return c.n, c.err
		}
		if err := conn.Execute(ctx, "stop", nil, nil); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
		cancel()
		if got := conn.Err() == nil; got != c.goesOn {
			t.Errorf("%s: the connection goes on: %t, want %t (%v)", what, got, c.goesOn, conn.Err())
		}
	}
}
