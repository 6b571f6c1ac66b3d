package front

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/vmlatch/vmlatch/qmp"
)

// Handler answers commands of clients in QEMU's place. It returns Pass for those that QEMU is to
// answer, HangUp to close the client's connection without an answer, an *Error, or a *qmp.Error.
type Handler func(ctx context.Context, command string, args json.RawMessage) (any, error)

// Instead is what a Handler may return instead of an answer.
type Instead string

// What is done instead.
const (
	Pass   Instead = "for QEMU"
	HangUp Instead = "the launch has failed, and QEMU has ended"
)

func (i Instead) Error() string { return string(i) }

// Error is the answer to a command that is refused.
type Error struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *Error) Error() string { return e.Desc }

// Generic is an error of QMP's class GenericError.
func Generic(format string, args ...any) error {
	return &Error{"GenericError", fmt.Sprintf(format, args...)}
}

// maxCommand is the longest command accepted from a client.
const maxCommand = 1 << 20

// server is a QMP server in front of one in QEMU.
type server struct {
	handle Handler
	up     *qmp.Conn
	busy   *sync.RWMutex // held for reading while a command is being answered
}

// client is one connection.
type client struct {
	s          *server
	conn       net.Conn
	wmu        sync.Mutex
	answering  sync.Mutex // held while a command is being answered
	negotiated bool
}

type request struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments"`
	ID        json.RawMessage `json:"id"`
}

type response struct {
	Return any             `json:"return,omitempty"`
	Error  *Error          `json:"error,omitempty"`
	ID     json.RawMessage `json:"id,omitempty"`
}

func (s *server) serve(nc net.Conn) {
	defer nc.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c := &client{s: s, conn: nc}
	if c.send(map[string]any{"QMP": s.greeting()}) != nil {
		return
	}
	in := bufio.NewScanner(nc)
	in.Buffer(make([]byte, 4096), maxCommand)
	for in.Scan() {
		var req request
		if err := json.Unmarshal(in.Bytes(), &req); err != nil || req.Execute == "" {
			_ = c.send(response{Error: &Error{"GenericError", "swtee: not a QMP command"}})
			continue
		}
		if !c.answer(ctx, req) {
			return
		}
	}
}

// greeting is QEMU's own, without out-of-band execution, which ends here.
func (s *server) greeting() map[string]json.RawMessage {
	g := map[string]json.RawMessage{}
	_ = json.Unmarshal(s.up.Greeting(), &g)
	g["capabilities"] = json.RawMessage("[]")
	return g
}

// answer answers a command, and reports whether the client may send another.
func (c *client) answer(ctx context.Context, req request) bool {
	c.s.busy.RLock()
	defer c.s.busy.RUnlock()
	c.answering.Lock()
	defer c.answering.Unlock()
	ret, err := c.execute(ctx, req)
	return c.reply(req.ID, ret, err)
}

func (c *client) execute(ctx context.Context, req request) (any, error) {
	if req.Execute == "qmp_capabilities" {
		if !c.negotiated {
			c.negotiated = true
			sub := c.s.up.Subscribe(1024)
			context.AfterFunc(ctx, sub.Close)
			go c.events(ctx, sub)
		}
		return struct{}{}, nil
	}
	if !c.negotiated {
		return nil, &Error{
			qmp.ClassCommandNotFound,
			"Expecting capabilities negotiation with 'qmp_capabilities'",
		}
	}
	if ret, err := c.s.handle(ctx, req.Execute, req.Arguments); err != Pass {
		return ret, err
	}
	return Forward(ctx, c.s.up, req.Execute, req.Arguments)
}

// Forward passes a command on.
func Forward(ctx context.Context, up *qmp.Conn, command string, arguments json.RawMessage) (any, error) {
	var args any
	if arguments != nil {
		args = arguments
	}
	var ret json.RawMessage
	err := up.Execute(ctx, command, args, &ret)
	return ret, err
}

func (c *client) reply(id json.RawMessage, ret any, err error) bool {
	if err == nil {
		return c.send(response{Return: ret, ID: id}) == nil
	}
	var own *Error
	var theirs *qmp.Error
	switch {
	case errors.As(err, &own):
	case errors.As(err, &theirs) && theirs.Class != "":
		own = &Error{theirs.Class, theirs.Desc}
	default:
		return false // QEMU is gone; close the connection
	}
	return c.send(response{Error: own, ID: id}) == nil
}

// events forwards QEMU's events until the client or QEMU disconnects.
func (c *client) events(ctx context.Context, sub *qmp.Subscription) {
	for {
		e, err := sub.Next(ctx)
		if err != nil {
			return
		}
		if e.Name == qmp.EventConnectionLost {
			c.answering.Lock() // the last answer, such as that to "quit", still reaches the client
			defer c.answering.Unlock()
			_ = c.conn.Close()
			return
		}
		msg := map[string]any{"event": e.Name, "timestamp": map[string]int64{
			"seconds": e.Time.Unix(), "microseconds": int64(e.Time.Nanosecond() / 1000),
		}}
		if e.Data != nil {
			msg["data"] = e.Data
		}
		if c.send(msg) != nil {
			return
		}
	}
}

func (c *client) send(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	_, err = c.conn.Write(append(b, '\r', '\n'))
	return err
}
