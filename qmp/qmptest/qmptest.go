// Package qmptest is a scripted QEMU for tests: the server's end of a QMP
// connection, well-behaved or hostile.
//
// A script has one step a line; empty lines and lines that begin with # are
// skipped:
//
//	< NAME        read one command and require its name
//	> TEXT        send TEXT and a newline; $ID is the id of the last command
//	>> TEXT       send TEXT without a newline
//	>N BYTES      send a reply to the last command with a string of N bytes
//	event*N NAME  send N events
//	wait NAME     wait until the test calls Server.Signal(NAME)
//	close         close the connection
//
// [Greeting] and [Negotiate] are the beginnings of most scripts. After the last
// step the server keeps the connection open and reads on without answering.
package qmptest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Greeting is the first message of QEMU 7.2.
const Greeting = `> {"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "qmptest"}, ` +
	`"capabilities": ["oob"]}}` + "\n"

// Negotiate is a greeting and the end of negotiation.
const Negotiate = Greeting + "< qmp_capabilities\n> {\"return\": {}, \"id\": $ID}\n"

// Server runs one script.
type Server struct {
	conn    net.Conn
	mu      sync.Mutex
	signals map[string]chan struct{}
	done    chan struct{}
	err     error
}

// Serve starts a server with the script and returns the client's end of the
// connection, a unix socket. If the script fails, the test fails at its end.
func Serve(t testing.TB, script string) (net.Conn, *Server) {
	t.Helper()
	client, server := pair(t)
	s := &Server{conn: server, signals: map[string]chan struct{}{}, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		s.err = s.run(script)
	}()
	t.Cleanup(func() {
		_ = server.Close()
		s.mu.Lock()
		for name := range s.signals {
			s.closeSignal(name)
		}
		s.mu.Unlock()
		<-s.done
		if s.err != nil {
			t.Errorf("qmptest: %v", s.err)
		}
	})
	return client, s
}

func pair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	return conns[0], conns[1]
}

// Signal lets the script pass its "wait NAME".
func (s *Server) Signal(name string) {
	s.signal(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeSignal(name)
}

func (s *Server) closeSignal(name string) {
	select {
	case <-s.signals[name]:
	default:
		close(s.signals[name])
	}
}

func (s *Server) signal(name string) chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.signals[name] == nil {
		s.signals[name] = make(chan struct{})
	}
	return s.signals[name]
}

// run plays the script. A client that hangs up ends it without an error.
func (s *Server) run(script string) error {
	in := bufio.NewReaderSize(s.conn, 1<<20)
	id := "null"
	for n, line := range strings.Split(script, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		verb, rest, _ := strings.Cut(line, " ")
		err := error(nil)
		switch {
		case verb == "<":
			id, err = expect(in, rest)
		case verb == ">":
			_, err = io.WriteString(s.conn, strings.ReplaceAll(rest, "$ID", id)+"\n")
		case verb == ">>":
			_, err = io.WriteString(s.conn, strings.ReplaceAll(rest, "$ID", id))
		case verb == ">N":
			var size int
			if size, err = strconv.Atoi(rest); err == nil {
				_, err = fmt.Fprintf(s.conn, "{\"return\": %q, \"id\": %s}\n", strings.Repeat("x", size), id)
			}
		case strings.HasPrefix(verb, "event*"):
			var count int
			if count, err = strconv.Atoi(verb[len("event*"):]); err == nil {
				err = s.events(count, rest)
			}
		case verb == "wait":
			<-s.signal(rest)
		case verb == "close":
			return s.conn.Close()
		default:
			err = fmt.Errorf("unknown step %q", line)
		}
		if err != nil {
			if isHangup(err) {
				return nil
			}
			return fmt.Errorf("line %d: %q: %w", n+1, line, err)
		}
	}
	_, _ = io.Copy(io.Discard, in)
	return nil
}

func (s *Server) events(count int, name string) error {
	for i := range count {
		_, err := fmt.Fprintf(s.conn,
			"{\"timestamp\": {\"seconds\": %d, \"microseconds\": 0}, \"event\": %q, \"data\": {\"n\": %d}}\n",
			i, name, i)
		if err != nil {
			return err
		}
	}
	return nil
}

func expect(in *bufio.Reader, name string) (id string, err error) {
	line, err := in.ReadBytes('\n')
	if err != nil {
		return "", err
	}
	var cmd struct {
		Execute string          `json:"execute"`
		ExecOOB string          `json:"exec-oob"`
		ID      json.RawMessage `json:"id"`
	}
	if err := json.Unmarshal(line, &cmd); err != nil {
		return "", err
	}
	if got := cmd.Execute + cmd.ExecOOB; got != name {
		return "", fmt.Errorf("client sent %q", got)
	}
	return string(cmd.ID), nil
}

func isHangup(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
}
