package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"
)

// MaxLine is the longest line accepted from a peer. The largest known reply,
// query-qmp-schema, has a little over 200 KB.
const MaxLine = 64 << 20

// Version is what QEMU says of itself in its greeting.
type Version struct {
	Major   int
	Minor   int
	Micro   int
	Package string // distribution's own version
}

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// Options change how a connection is made.
type Options struct {
	// OOB asks for out-of-band execution, where QEMU offers it.
	OOB bool
	// Logger receives a debug record per command, with command, args, reply, took and
	// err. Arguments of unknown content, and those that may be secret
	// ([slog.LogValuer]), are not in it.
	Logger *slog.Logger
}

// Conn is a connection to one QMP monitor, safe for concurrent use. One
// goroutine reads until Close or until the peer is gone; Close returns after
// it has ended.
type Conn struct {
	nc       net.Conn
	log      *slog.Logger
	greeting json.RawMessage
	version  Version
	offered  []string // capabilities in the greeting
	oob      bool

	writing chan struct{} // holds one element while a command is written, in the order of ids

	mu      sync.Mutex
	pending map[uint64]chan reply
	lastID  uint64
	err     error // why the connection ended
	strays  uint64
	events  fanout

	greeted chan json.RawMessage // one greeting
	done    chan struct{}        // closed when the reader has ended
}

type reply struct {
	ret json.RawMessage
	err *wireError
}

type wireError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

// message is any line that QEMU sends.
type message struct {
	QMP       json.RawMessage `json:"QMP"`
	ID        json.RawMessage `json:"id"`
	Return    json.RawMessage `json:"return"`
	Error     *wireError      `json:"error"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp timestamp       `json:"timestamp"`
}

type timestamp struct {
	Seconds      int64 `json:"seconds"`
	Microseconds int64 `json:"microseconds"`
}

// Dial connects to a monitor's unix socket and negotiates.
func Dial(ctx context.Context, path string, opt Options) (*Conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, &Error{Op: "connect", Err: err}
	}
	return NewConn(ctx, nc, opt)
}

// NewConn negotiates on an open connection, which it owns from then on, even
// when it fails. ctx bounds the negotiation only.
func NewConn(ctx context.Context, nc net.Conn, opt Options) (*Conn, error) {
	c := &Conn{
		nc: nc, log: opt.Logger,
		pending: map[uint64]chan reply{},
		writing: make(chan struct{}, 1),
		greeted: make(chan json.RawMessage, 1),
		done:    make(chan struct{}),
	}
	c.events.init()
	go c.read()
	if err := c.negotiate(ctx, opt.OOB); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// negotiate leaves negotiation mode. Where nothing depends on the greeting the
// command is sent before it has come, which spares a round trip.
func (c *Conn) negotiate(ctx context.Context, oob bool) error {
	if !oob {
		err := c.Execute(ctx, "qmp_capabilities", nil, nil)
		if err == nil {
			return c.parseGreeting(ctx)
		}
		if len(c.greeted) == 0 && ctx.Err() != nil {
			return c.noGreeting(ctx)
		}
		var e *Error
		if errors.As(err, &e) && e.Class == "" {
			e.Op = "connect"
		}
		return err
	}
	if err := c.parseGreeting(ctx); err != nil {
		return err
	}
	var args any
	if slices.Contains(c.offered, "oob") {
		args, c.oob = map[string][]string{"enable": {"oob"}}, true
	}
	return c.Execute(ctx, "qmp_capabilities", args, nil)
}

func (c *Conn) noGreeting(ctx context.Context) error {
	return &Error{Op: "connect", Err: fmt.Errorf("no greeting (another client may hold the monitor): %w", ctx.Err())}
}

func (c *Conn) parseGreeting(ctx context.Context) error {
	select {
	case c.greeting = <-c.greeted:
	case <-c.done:
		return &Error{Op: "connect", Err: c.Err()}
	case <-ctx.Done():
		return c.noGreeting(ctx)
	}
	var g struct {
		Version struct {
			QEMU    struct{ Major, Minor, Micro int }
			Package string
		}
		Capabilities []string
	}
	if err := json.Unmarshal(c.greeting, &g); err != nil {
		return &Error{Op: "connect", Err: fmt.Errorf("%w: greeting: %v", ErrProtocol, err)}
	}
	c.version = Version{g.Version.QEMU.Major, g.Version.QEMU.Minor, g.Version.QEMU.Micro, g.Version.Package}
	c.offered = g.Capabilities
	return nil
}

// Version is the version of QEMU in the greeting.
func (c *Conn) Version() Version { return c.version }

// Greeting is the greeting's "QMP" object as QEMU sent it.
func (c *Conn) Greeting() json.RawMessage { return c.greeting }

// Done is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err says why the connection ended; nil while it is open.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Strays counts replies that no call waited for: late ones and unknown ids.
func (c *Conn) Strays() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.strays
}

// Close ends the connection and waits for the reader. Calls in flight fail
// with ErrClosed. It may be called more than once.
func (c *Conn) Close() error {
	c.fail(ErrClosed)
	<-c.done
	return nil
}

// fail ends the connection with its first reason; the reader then tells everyone.
func (c *Conn) fail(reason error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = reason
	}
	c.mu.Unlock()
	_ = c.nc.Close()
}

// Execute runs a command and decodes its return value into out, which may be
// nil. Errors are *Error. When ctx ends first the command may still be running; its
// reply is then dropped.
func (c *Conn) Execute(ctx context.Context, command string, args, out any) error {
	return c.execute(ctx, "execute", command, args, out, nil)
}

// ExecuteOOB runs a command out of band, past others that are still running.
// The connection must have been made with Options.OOB.
func (c *Conn) ExecuteOOB(ctx context.Context, command string, args, out any) error {
	if !c.oob {
		return &Error{Op: command, Err: errors.New("out-of-band execution was not negotiated")}
	}
	return c.execute(ctx, "exec-oob", command, args, out, nil)
}

// ExecuteFile runs a command and passes a file with it, as getfd and add-fd
// take one. The connection must be a unix socket.
func (c *Conn) ExecuteFile(ctx context.Context, command string, args, out any, f *os.File) error {
	if _, ok := c.nc.(*net.UnixConn); !ok {
		return &Error{Op: command, Err: errors.New("files can be passed over unix sockets only")}
	}
	return c.execute(ctx, "execute", command, args, out, f)
}

func (c *Conn) execute(ctx context.Context, verb, command string, args, out any, f *os.File) error {
	start := time.Now()
	ret, err := c.roundTrip(ctx, verb, command, args, f)
	if err == nil && out != nil {
		if e := json.Unmarshal(ret, out); e != nil {
			err = &Error{Op: command, Err: fmt.Errorf("%w: unexpected reply: %v", ErrProtocol, e)}
		}
	}
	if c.log != nil {
		c.log.DebugContext(ctx, "qmp", "command", command, "args", loggable(args), "reply", brief(ret),
			"took", time.Since(start), "err", err)
	}
	return err
}

// loggable is what may be logged of a command's arguments.
func loggable(args any) any {
	switch a := args.(type) {
	case nil:
		return ""
	case slog.LogValuer:
		return a
	case json.RawMessage: // a user's own: it may hold anything
		return fmt.Sprintf("[%d bytes]", len(a))
	}
	b, err := json.Marshal(args)
	if err != nil {
		return err
	}
	return brief(b)
}

// brief is the beginning of what may be long.
func brief(b []byte) string {
	const most = 240
	if len(b) > most {
		return string(b[:most]) + "…"
	}
	return string(b)
}

func (c *Conn) roundTrip(ctx context.Context, verb, command string, args any, f *os.File) (json.RawMessage, error) {
	if err := ctx.Err(); err != nil {
		return nil, &Error{Op: command, Err: err}
	}
	var rawArgs []byte
	if args != nil {
		var err error
		if rawArgs, err = json.Marshal(args); err != nil {
			return nil, &Error{Op: command, Err: err}
		}
		defer clear(rawArgs) // may be a secret
	}
	got := make(chan reply, 1)
	id, err := c.send(ctx, verb, command, rawArgs, f, got)
	if err != nil {
		return nil, &Error{Op: command, Err: err}
	}
	select {
	case r := <-got:
		return r.result(command)
	default:
	}
	select {
	case r := <-got:
		return r.result(command)
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.pending, id)
		c.mu.Unlock()
		return nil, &Error{Op: command, Err: ctx.Err()}
	case <-c.done:
		select {
		case r := <-got: // the reply was QEMU's last word
			return r.result(command)
		default:
			return nil, &Error{Op: command, Err: c.Err()}
		}
	}
}

func (r reply) result(command string) (json.RawMessage, error) {
	if r.err != nil {
		return nil, &Error{Op: command, Class: r.err.Class, Desc: r.err.Desc}
	}
	return r.ret, nil
}

// send registers and writes one command. A command that was written in part
// leaves the stream without a meaning, so that ends the connection.
func (c *Conn) send(
	ctx context.Context, verb, command string, args []byte, f *os.File, got chan reply,
) (uint64, error) {
	select {
	case c.writing <- struct{}{}:
		defer func() { <-c.writing }()
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-c.done:
		return 0, c.Err()
	}
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return 0, c.err
	}
	c.lastID++
	id := c.lastID
	c.pending[id] = got
	c.mu.Unlock()

	line := appendCommand(make([]byte, 0, 128+len(args)), verb, command, args, id)
	defer clear(line)
	if ctx.Done() != nil {
		set := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			_ = c.nc.SetWriteDeadline(time.Unix(1, 0))
			close(set)
		})
		defer func() {
			if !stop() {
				<-set // or it could be set after it is cleared
				_ = c.nc.SetWriteDeadline(time.Time{})
			}
		}()
	}
	n, err := c.write(line, f)
	if err == nil {
		return id, nil
	}
	c.mu.Lock()
	delete(c.pending, id)
	c.mu.Unlock()
	if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		err = ctx.Err()
	} else {
		err = closedError(err)
	}
	if n > 0 {
		c.fail(fmt.Errorf("%w: a command was cut off after %d bytes", ErrClosed, n))
	}
	return 0, err
}

func (c *Conn) write(line []byte, f *os.File) (int, error) {
	if f == nil {
		return c.nc.Write(line)
	}
	u := c.nc.(*net.UnixConn) // see ExecuteFile
	// The file rides on the first byte; what the kernel did not take follows.
	n, _, err := u.WriteMsgUnix(line, unixRights(f), nil)
	if err != nil || n == len(line) {
		return n, err
	}
	m, err := u.Write(line[n:])
	return n + m, err
}

func appendCommand(b []byte, verb, command string, args []byte, id uint64) []byte {
	name, _ := json.Marshal(command) // strings always marshal
	b = append(b, `{"`...)
	b = append(b, verb...)
	b = append(b, `":`...)
	b = append(b, name...)
	if args != nil {
		b = append(b, `,"arguments":`...)
		b = append(b, args...)
	}
	b = append(b, `,"id":`...)
	b = strconv.AppendUint(b, id, 10)
	return append(b, "}\n"...)
}
