package main

import (
	"bytes"
	"errors"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/smallfmt"
)

// stream is a way to the broker that can be waited for. Package net would double the program.
type stream struct {
	fd   int
	have []byte
}

// connectTime is how long a connection may take.
const connectTime = 15 * time.Second

var errSlow = errors.New("no answer in time")

// connect opens the way that the command line names.
func (g *guest) connect(w exchange.Way) (*stream, error) {
	switch w.Network {
	case "port":
		return g.port()
	case "vsock":
		return socket(unix.AF_VSOCK, &unix.SockaddrVM{CID: w.CID, Port: w.Port})
	}
	if len(w.Host) == 4 {
		return socket(unix.AF_INET, &unix.SockaddrInet4{Port: int(w.Port), Addr: [4]byte(w.Host)})
	}
	return socket(unix.AF_INET6, &unix.SockaddrInet6{Port: int(w.Port), Addr: [16]byte(w.Host)})
}

// port finds the virtio port by its name.
func (g *guest) port() (*stream, error) {
	for _, name := range list(g.ports) {
		b, err := readFile(g.ports + "/" + name + "/name")
		if err != nil || strings.TrimSpace(string(b)) != exchange.Port {
			continue
		}
		device := g.devices + "/" + name
		fd, err := open(device, unix.O_RDWR|unix.O_NONBLOCK, 0)
		return &stream{fd: int(fd)}, err
	}
	return nil, smallfmt.Errorf("there is no port %s", exchange.Port)
}

func socket(family int, to unix.Sockaddr) (*stream, error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	s := &stream{fd: fd}
	err = unix.Connect(fd, to)
	if errors.Is(err, unix.EINPROGRESS) {
		if err = s.wait(unix.POLLOUT, time.Now().Add(connectTime)); err == nil {
			var n int
			if n, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err == nil && n != 0 {
				err = unix.Errno(n)
			}
		}
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *stream) close() { _ = unix.Close(s.fd) }

// wait waits until the descriptor can be read or written.
func (s *stream) wait(events int16, by time.Time) error {
	for {
		left := time.Until(by)
		if left <= 0 {
			return errSlow
		}
		p := []unix.PollFd{{Fd: int32(s.fd), Events: events}}
		n, err := unix.Poll(p, int(min(left, time.Second)/time.Millisecond)+1)
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return err
		case n > 0 && p[0].Revents&events != 0:
			return nil
		case n > 0: // POLLHUP: nothing is at the other end of a port yet
			time.Sleep(min(left, 100*time.Millisecond))
			if p[0].Revents&unix.POLLERR != 0 {
				return unix.EIO
			}
		}
	}
}

func (s *stream) write(b []byte, by time.Time) error {
	for len(b) > 0 {
		if err := s.wait(unix.POLLOUT, by); err != nil {
			return err
		}
		n, err := unix.Write(s.fd, b)
		if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return err
		}
		b = b[max(n, 0):]
	}
	return nil
}

var errEnd = errors.New("the connection ended")

// line reads a line.
func (s *stream) line(by time.Time) ([]byte, error) {
	var buf [16 << 10]byte
	for {
		if i := bytes.IndexByte(s.have, '\n'); i >= 0 {
			line := s.have[:i+1]
			s.have = s.have[i+1:]
			return line, nil
		}
		if len(s.have) > exchange.MaxLine {
			return nil, exchange.ErrMessage
		}
		if err := s.wait(unix.POLLIN, by); err != nil {
			return nil, err
		}
		n, err := unix.Read(s.fd, buf[:])
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, err
		case n == 0:
			return nil, errEnd
		}
		s.have = append(s.have, buf[:n]...)
	}
}
