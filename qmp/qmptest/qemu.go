package qmptest

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"
)

// Handler answers a command: with QEMU's return value, or with an error that has QEMU's
// text.
type Handler func(args json.RawMessage) (any, error)

var (
	// ErrSilence makes QEMU never answer the command.
	ErrSilence = errors.New("no answer")
	// ErrHangup makes QEMU close the connection instead of answering.
	ErrHangup = errors.New("hang up")
)

// QEMU plays a QEMU with a paused machine, by a table of commands. Unlike a [Server]
// it has no script: commands may come in any order, over any number of connections.
type QEMU struct {
	mu       sync.Mutex
	handlers map[string]Handler
	asked    []string
	running  bool
}

// NewQEMU makes a QEMU that knows the commands of a machine's life cycle: query-status,
// cont, stop and system_powerdown.
func NewQEMU() *QEMU {
	q := &QEMU{handlers: map[string]Handler{}}
	run := func(running bool) Handler {
		return func(json.RawMessage) (any, error) {
			q.running = running
			return struct{}{}, nil
		}
	}
	q.handlers["qmp_capabilities"] = func(json.RawMessage) (any, error) { return struct{}{}, nil }
	q.handlers["query-status"] = func(json.RawMessage) (any, error) {
		status := map[bool]string{true: "running", false: "prelaunch"}[q.running]
		return map[string]any{"running": q.running, "status": status}, nil
	}
	q.handlers["cont"], q.handlers["stop"] = run(true), run(false)
	q.handlers["system_powerdown"] = func(json.RawMessage) (any, error) { return struct{}{}, nil }
	return q
}

// On replaces the answer to a command. Handlers are called one at a time.
func (q *QEMU) On(command string, h Handler) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.handlers[command] = h
}

// Asked returns the commands that have come, in order.
func (q *QEMU) Asked() []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return append([]string(nil), q.asked...)
}

// Running reports whether the guest is running.
func (q *QEMU) Running() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.running
}

// Listen serves every client of a socket, one at a time as a monitor does, until the
// listener is closed.
func (q *QEMU) Listen(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_ = q.Serve(c)
	}
}

// Serve plays QEMU's end of a connection until the client hangs up.
func (q *QEMU) Serve(c net.Conn) error {
	defer c.Close()
	if _, err := io.WriteString(c, Greeting[len("> "):]); err != nil {
		return err
	}
	in := json.NewDecoder(bufio.NewReader(c))
	for {
		var cmd struct {
			Execute   string          `json:"execute"`
			Arguments json.RawMessage `json:"arguments"`
			ID        json.RawMessage `json:"id"`
		}
		if err := in.Decode(&cmd); err != nil {
			return err
		}
		answer, err := q.answer(cmd.Execute, cmd.Arguments)
		reply := map[string]any{"return": answer, "id": cmd.ID}
		switch {
		case errors.Is(err, ErrSilence):
			continue
		case errors.Is(err, ErrHangup):
			return nil
		case err != nil:
			failure := map[string]string{"class": "GenericError", "desc": err.Error()}
			reply = map[string]any{"error": failure, "id": cmd.ID}
		}
		if err := json.NewEncoder(c).Encode(reply); err != nil {
			return err
		}
	}
}

func (q *QEMU) answer(command string, args json.RawMessage) (any, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.asked = append(q.asked, command)
	h, ok := q.handlers[command]
	if !ok {
		return nil, errors.New("The command " + command + " has not been found") // QEMU's words
	}
	return h(args)
}
