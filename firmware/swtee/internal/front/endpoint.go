package front

import (
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// endpoint is the source of one monitor's clients: a listening socket, or a single
// connection.
type endpoint struct {
	listener net.Listener
	mu       sync.Mutex
	conn     net.Conn
	closed   bool
}

// openMonitors takes over the sockets that the caller meant for QEMU.
func openMonitors(specs []monitor) (list []*endpoint, err error) {
	for _, m := range specs {
		e := &endpoint{}
		switch {
		case m.fd >= 0:
			unix.CloseOnExec(m.fd)
			f := os.NewFile(uintptr(m.fd), "monitor "+m.chardev)
			if m.listen {
				e.listener, err = net.FileListener(f)
			} else {
				e.conn, err = net.FileConn(f)
			}
			_ = f.Close()
		default:
			e.listener, err = net.Listen("unix", m.path)
		}
		if err != nil {
			return list, fmt.Errorf("%w %s: %w", ErrMonitor, m.chardev, err)
		}
		list = append(list, e)
	}
	return list, nil
}

func (e *endpoint) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	if e.listener != nil {
		_ = e.listener.Close()
	}
	if e.conn != nil {
		_ = e.conn.Close()
	}
}

// serve answers one client after the other, as QEMU's socket chardev does.
func (e *endpoint) serve(s *server) {
	if e.listener == nil {
		s.serve(e.conn)
		return
	}
	for {
		c, err := e.listener.Accept()
		if err != nil {
			return
		}
		e.mu.Lock()
		e.conn = c
		closed := e.closed
		e.mu.Unlock()
		if !closed {
			s.serve(c)
		}
		_ = c.Close()
	}
}
