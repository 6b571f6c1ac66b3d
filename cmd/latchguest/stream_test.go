package main

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
)

// TestPort: the port is found by its name, and a silent one is given up.
func TestPort(t *testing.T) {
	w := newWorld(t)
	if _, err := w.guest.port(); err == nil {
		t.Error("a port where there is none")
	}
	w.write("ports/vport1p1/name", "org.other\n")
	w.write("ports/vport2p1/name", exchange.Port+"\n")
	w.write("dev/vport2p1", "")
	s, err := w.guest.port()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.line(time.Now().Add(time.Second)); !errors.Is(err, errEnd) {
		t.Errorf("an empty port: %v, want its end", err)
	}
	s.close()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	near, far := &stream{fd: fds[0]}, &stream{fd: fds[1]}
	defer far.close()
	if _, err := near.line(time.Now().Add(50 * time.Millisecond)); !errors.Is(err, errSlow) {
		t.Errorf("a silent peer: %v, want errSlow", err)
	}
	go func() {
		for far.write(make([]byte, 64<<10), time.Now().Add(time.Second)) == nil {
		}
	}()
	if _, err := near.line(time.Now().Add(5 * time.Second)); !errors.Is(err, exchange.ErrMessage) {
		t.Errorf("a line without an end: %v, want ErrMessage", err)
	}
	near.close()
}
