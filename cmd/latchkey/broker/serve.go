package broker

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
)

// Limits of connections. A guest's port stays connected for as long as the guest runs, so a silent
// connection costs little, and only messages that are longer than a buffer need one of few places.
const (
	maxConns    = 1024
	maxLong     = 64
	bufferSize  = 4 << 10
	messageTime = 10 * time.Second // from a message's first byte to its end, and for an answer to be taken
)

// conns are the open connections.
type conns struct {
	mu     sync.Mutex
	open   map[net.Conn]*connState
	places chan struct{} // of long messages
	closed bool
}

type connState struct {
	at       time.Time // when it was heard last; of a long message, when it began
	busy     bool      // a message is under way
	placed   bool      // and has a place for long ones
	answered bool      // and was read as a whole
}

// add lets a connection in, as long as connections are served. When there are too many, the one
// that was silent longest goes: its host connects again.
func (c *conns) add(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		_ = conn.Close()
		return false
	}
	if len(c.open) >= maxConns {
		victim := c.oldest(func(s *connState) bool { return !s.busy })
		if victim == nil { // else the one that takes longest for its message
			victim = c.oldest(func(s *connState) bool { return !s.answered })
		}
		if victim == nil { // all wait for answers: the newest goes
			_ = conn.Close()
			return true
		}
		_ = victim.Close()
		delete(c.open, victim)
	}
	c.open[conn] = &connState{at: time.Now()}
	return true
}

// oldest is the connection of a kind that was heard last before all others; nil for none.
func (c *conns) oldest(kind func(*connState) bool) (found net.Conn) {
	for x, s := range c.open {
		if kind(s) && (found == nil || s.at.Before(c.open[found].at)) {
			found = x
		}
	}
	return found
}

func (c *conns) set(conn net.Conn, to connState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open[conn] != nil {
		to.at = time.Now()
		c.open[conn] = &to
	}
}

// place gets a place for a long message. If there is none, the one that is being read for longest
// loses its own.
func (c *conns) place(ctx context.Context, conn net.Conn) bool {
	c.set(conn, connState{busy: true})
	select {
	case c.places <- struct{}{}:
		c.set(conn, connState{busy: true, placed: true})
		return true
	default:
	}
	c.mu.Lock()
	victim := c.oldest(func(s *connState) bool { return s.placed && !s.answered })
	c.mu.Unlock()
	if victim != nil && victim != conn {
		_ = victim.Close()
	}
	ctx, stop := context.WithTimeout(ctx, messageTime)
	defer stop()
	select {
	case c.places <- struct{}{}:
		c.set(conn, connState{busy: true, placed: true})
		return true
	case <-ctx.Done():
		return false
	}
}

// close closes all connections, and those that would be added later.
func (c *conns) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for conn := range c.open {
		_ = conn.Close()
	}
}

func (c *conns) remove(conn net.Conn) {
	_ = conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, conn)
}

// Serve answers connections until the context ends.
func (b *Broker) Serve(ctx context.Context, listeners ...net.Listener) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	all := &conns{open: map[net.Conn]*connState{}, places: make(chan struct{}, maxLong)}
	var wg sync.WaitGroup
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		wg.Go(func() { failed <- b.accept(ctx, l, all, &wg) })
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		stop()
	}
	for _, l := range listeners {
		_ = l.Close()
	}
	all.close()
	wg.Wait()
	return err
}

func (b *Broker) accept(ctx context.Context, l net.Listener, all *conns, wg *sync.WaitGroup) error {
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if conn != nil {
				_ = conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // such as too many open files: others must end first
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		if !all.add(conn) {
			return nil
		}
		wg.Go(func() {
			defer all.remove(conn)
			b.converse(ctx, conn, all)
		})
	}
}

// converse answers the lines of a connection, until one is too long or too slow.
func (b *Broker) converse(ctx context.Context, conn net.Conn, all *conns) {
	r := bufio.NewReaderSize(conn, bufferSize)
	for {
		all.set(conn, connState{})
		if _, err := r.Peek(1); err != nil {
			return
		}
		if !b.exchangeOne(ctx, conn, r, all) {
			return
		}
	}
}

// exchangeOne answers one line. It reports whether the connection may go on.
func (b *Broker) exchangeOne(ctx context.Context, conn net.Conn, r *bufio.Reader, all *conns) bool {
	all.set(conn, connState{busy: true})
	_ = conn.SetReadDeadline(time.Now().Add(messageTime))
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		if !all.place(ctx, conn) {
			return false
		}
		defer func() { <-all.places }()
		line, err = readRest(r, line)
	}
	if err != nil {
		if !errors.Is(err, io.EOF) {
			b.drop("line")
		}
		return false
	}
	all.set(conn, connState{busy: true, answered: true})
	_ = conn.SetReadDeadline(time.Time{})
	answer := b.Answer(ctx, bytes.Clone(line))
	if answer == nil {
		return !b.isOthers(line)
	}
	_ = conn.SetWriteDeadline(time.Now().Add(messageTime))
	_, err = conn.Write(answer)
	return err == nil
}

// isOthers reports whether a line is for another broker: who sends it has the wrong address, and
// would wait in vain.
func (b *Broker) isOthers(line []byte) bool {
	k, err := exchange.ClaimedKey(line)
	return err == nil && b.keys[k] == nil
}

var errLong = errors.New("the line is too long")

// readRest reads the rest of a line of at most exchange.MaxLine bytes.
func readRest(r *bufio.Reader, begin []byte) (line []byte, err error) {
	line = bytes.Clone(begin)
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > exchange.MaxLine {
			return nil, errLong
		}
		line = append(line, part...)
		if err == nil {
			return line, nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
	}
}
