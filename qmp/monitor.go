package qmp

import (
	"context"
	"encoding/json"
	"fmt"

	goqemu "github.com/digitalocean/go-qemu/qmp"
)

// monitor lets code written for go-qemu run on a Conn.
type monitor struct {
	conn *Conn
	ctx  context.Context
}

var _ goqemu.Monitor = (*monitor)(nil)

// Monitor returns the connection as go-qemu's Monitor, so that raw.NewMonitor
// and the packages built on it work. ctx bounds every Run. Disconnect closes
// the connection.
func (c *Conn) Monitor(ctx context.Context) goqemu.Monitor { return &monitor{c, ctx} }

// Connect has nothing to do: a Conn is connected from the start.
func (m *monitor) Connect() error {
	if err := m.conn.Err(); err != nil {
		return &Error{Op: "connect", Err: err}
	}
	return nil
}

// Disconnect closes the connection.
func (m *monitor) Disconnect() error { return m.conn.Close() }

// Run executes one command given as JSON and returns the reply as JSON. The
// command's own id is not sent; the connection numbers its commands.
func (m *monitor) Run(command []byte) ([]byte, error) {
	var cmd struct {
		Execute   string          `json:"execute"`
		ExecOOB   string          `json:"exec-oob"`
		Arguments json.RawMessage `json:"arguments"`
	}
	if err := json.Unmarshal(command, &cmd); err != nil {
		return nil, &Error{Op: "run", Err: fmt.Errorf("command: %w", err)}
	}
	var args any
	if cmd.Arguments != nil {
		args = cmd.Arguments
	}
	var ret json.RawMessage
	var err error
	if cmd.ExecOOB != "" {
		err = m.conn.ExecuteOOB(m.ctx, cmd.ExecOOB, args, &ret)
	} else {
		err = m.conn.Execute(m.ctx, cmd.Execute, args, &ret)
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]json.RawMessage{"return": ret})
}

// Events returns the connection's events until ctx ends or the connection is
// lost; then the channel is closed.
func (m *monitor) Events(ctx context.Context) (<-chan goqemu.Event, error) {
	sub := m.conn.Subscribe(256)
	out := make(chan goqemu.Event)
	go func() {
		defer close(out)
		defer sub.Close()
		for {
			e, err := sub.Next(ctx)
			if err != nil || e.Name == EventConnectionLost {
				return
			}
			ge := goqemu.Event{Event: e.Name}
			_ = json.Unmarshal(e.Data, &ge.Data) // no data is allowed
			ge.Timestamp.Seconds = e.Time.Unix()
			ge.Timestamp.Microseconds = int64(e.Time.Nanosecond() / 1000)
			select {
			case out <- ge:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}
