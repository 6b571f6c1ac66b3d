package qmp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

// read runs until the connection ends.
func (c *Conn) read() {
	err := c.readLines()
	c.fail(err)
	c.mu.Lock()
	c.pending = nil
	reason := c.err
	c.mu.Unlock()
	c.events.lost(reason)
	close(c.done)
}

func (c *Conn) readLines() error {
	buf := make([]byte, 0, 4096)
	scanned := 0
	for {
		if i := bytes.IndexByte(buf[scanned:], '\n'); i >= 0 {
			line := buf[:scanned+i]
			if err := c.dispatch(bytes.TrimSpace(line)); err != nil {
				return err
			}
			buf = buf[:copy(buf, buf[scanned+i+1:])]
			scanned = 0
			continue
		}
		scanned = len(buf)
		if len(buf) == cap(buf) {
			if len(buf) >= MaxLine {
				return fmt.Errorf("%w: a line of over %d bytes", ErrProtocol, MaxLine)
			}
			buf = append(make([]byte, 0, min(2*cap(buf), MaxLine)), buf...)
		}
		n, err := c.nc.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if n > 0 {
			continue
		}
		if err == io.EOF && len(buf) > 0 {
			return fmt.Errorf("%w: ended in the middle of a line", ErrClosed)
		}
		return closedError(err)
	}
}

// dispatch hands one line on. It never waits for a consumer.
func (c *Conn) dispatch(line []byte) error {
	if len(line) == 0 {
		return nil
	}
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return fmt.Errorf("%w: %v", ErrProtocol, err)
	}
	switch {
	case m.Event != "":
		c.events.publish(Event{
			Name: m.Event, Data: m.Data,
			Time: time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000),
		})
	case m.QMP != nil:
		select {
		case c.greeted <- m.QMP:
		default:
			return fmt.Errorf("%w: a second greeting", ErrProtocol)
		}
	case m.Return != nil || m.Error != nil:
		c.mu.Lock()
		defer c.mu.Unlock()
		id, err := strconv.ParseUint(string(m.ID), 10, 64)
		got, ok := c.pending[id]
		if err != nil || !ok {
			c.strays++
			return nil
		}
		delete(c.pending, id)
		got <- reply{m.Return, m.Error}
	default:
		return fmt.Errorf("%w: a line that is neither reply nor event", ErrProtocol)
	}
	return nil
}

// closedError folds the ways in which a peer disappears into ErrClosed.
func closedError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || isDisconnect(err) {
		return ErrClosed
	}
	return fmt.Errorf("%w: %w", ErrClosed, err)
}
