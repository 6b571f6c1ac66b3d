package qmp_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/digitalocean/go-qemu/qmp/raw"

	"github.com/vmlatch/vmlatch/qmp"
	"github.com/vmlatch/vmlatch/qmp/qmptest"
)

func TestHostilePeers(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		want   error
	}{
		"garbage":               {"< query-status\n> not json at all", qmp.ErrProtocol},
		"neither reply":         {"< query-status\n> {\"hello\": 1}", qmp.ErrProtocol},
		"array":                 {"< query-status\n> [1,2]", qmp.ErrProtocol},
		"second greeting":       {"< query-status\n" + qmptest.Greeting + qmptest.Greeting, qmp.ErrProtocol},
		"eof instead of reply":  {"< query-status\nclose", qmp.ErrClosed},
		"eof in half a reply":   {"< query-status\n>> {\"return\": {\"sta\nclose", qmp.ErrClosed},
		"return of other shape": {"< query-status\n> {\"return\": [], \"id\": $ID}", qmp.ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			conn, _ := connect(t, qmptest.Negotiate+c.script)
			if _, err := (qmp.QueryStatus{}).Execute(short(t), conn); !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
		})
	}
	for name, script := range map[string]string{
		"closes at once": "close", "garbage first": "> hello", "half a greeting": ">> {\"QMP\"\nclose",
		"a greeting of another shape": "> {\"QMP\": []}\n< qmp_capabilities\n> {\"return\": {}, \"id\": $ID}",
		"refuses": qmptest.Greeting + "< qmp_capabilities\n" +
			"> {\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": $ID}",
	} {
		t.Run(name, func(t *testing.T) {
			nc, _ := qmptest.Serve(t, script)
			if c, err := qmp.NewConn(short(t), nc, qmp.Options{}); err == nil {
				_ = c.Close()
				t.Error("negotiation succeeds")
			}
		})
	}
}

// TestHostilePeersWithOOB: the greeting is waited for before a command is sent.
func TestHostilePeersWithOOB(t *testing.T) {
	for name, script := range map[string]string{
		"closes at once": "close", "garbage first": "> hello", "half a greeting": ">> {\"QMP\"\nclose",
		"a greeting of another shape": "> {\"QMP\": []}",
		"refuses": qmptest.Greeting + "< qmp_capabilities\n" +
			"> {\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": $ID}",
	} {
		nc, _ := qmptest.Serve(t, script)
		c, err := qmp.NewConn(short(t), nc, qmp.Options{OOB: true})
		var e *qmp.Error
		want := "connect"
		if name == "refuses" {
			want = "qmp_capabilities"
		}
		if !errors.As(err, &e) || e.Op != want {
			t.Errorf("%s: %v, want an error of %s", name, err, want)
		}
		if err == nil {
			_ = c.Close()
		}
	}
	nc, _ := qmptest.Serve(t, "")
	if _, err := qmp.NewConn(brief(t), nc, qmp.Options{OOB: true}); !errors.Is(err, context.DeadlineExceeded) ||
		!strings.Contains(err.Error(), "another client") {
		t.Errorf("no greeting: %v, want DeadlineExceeded", err)
	}
}

func FuzzPeer(f *testing.F) {
	f.Add(`{"return": {}, "id": 2}` + "\n")
	f.Add(`{"event": "STOP", "timestamp": {"seconds": -1, "microseconds": 1e9}}` + "\n{\"id\":")
	f.Fuzz(func(t *testing.T, text string) {
		a, b := net.Pipe()
		go func() {
			defer b.Close()
			buf := make([]byte, 4096)
			fmt.Fprintln(b, strings.TrimPrefix(strings.TrimSpace(qmptest.Greeting), "> "))
			_, _ = b.Read(buf)
			fmt.Fprintln(b, `{"return": {}, "id": 1}`)
			go func() {
				for {
					if _, err := b.Read(buf); err != nil {
						return
					}
				}
			}()
			fmt.Fprint(b, text)
		}()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		c, err := qmp.NewConn(ctx, a, qmp.Options{})
		if err != nil {
			return
		}
		defer c.Close()
		var out json.RawMessage
		_ = c.Execute(ctx, "query-status", nil, &out)
		if ctx.Err() != nil {
			t.Fatal("hangs")
		}
	})
}

// TestMonitorPassesArguments on, and keeps the id to itself.
func TestMonitorPassesArguments(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	got := make(chan string, 1)
	go func() {
		b := make([]byte, 4096)
		fmt.Fprintln(theirs, greeting)
		_, _ = theirs.Read(b)
		fmt.Fprintln(theirs, `{"return": {}, "id": 1}`)
		n, _ := theirs.Read(b)
		got <- strings.TrimSpace(string(b[:n]))
		fmt.Fprintln(theirs, `{"return": {"x": 1}, "id": 2}`)
	}()
	c, err := qmp.NewConn(short(t), ours, qmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Monitor(short(t)).Run([]byte(`{"execute": "eject", "arguments": {"id": "cd"}, "id": "mine"}`))
	if err != nil {
		t.Error(err)
	}
	if line, want := <-got, `{"execute":"eject","arguments":{"id":"cd"},"id":2}`; line != want {
		t.Errorf("sent %s, want %s", line, want)
	}
}

func TestGoQEMURawMonitor(t *testing.T) {
	c, server := connect(t, qmptest.Negotiate+`
		< query-version
		> {"return": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "p"}, "id": $ID}
		< stop
		> {"error": {"class": "GenericError", "desc": "no"}, "id": $ID}
		wait go
		> {"timestamp": {"seconds": 7, "microseconds": 8}, "event": "STOP"}
		close`)
	m := c.Monitor(short(t))
	if err := m.Connect(); err != nil {
		t.Fatal(err)
	}
	v, err := raw.NewMonitor(m).QueryVersion()
	if err != nil || v.Qemu.Major != 7 {
		t.Errorf("version %+v, %v", v, err)
	}
	if err := raw.NewMonitor(m).Stop(); err == nil {
		t.Error("an error reply is lost")
	}
	events, err := m.Events(short(t))
	if err != nil {
		t.Fatal(err)
	}
	server.Signal("go")
	if e := <-events; e.Event != "STOP" || e.Timestamp.Seconds != 7 || e.Timestamp.Microseconds != 8 {
		t.Errorf("event %+v", e)
	}
	if _, open := <-events; open {
		t.Error("the channel stays open after the connection is lost")
	}
	if err := m.Disconnect(); err != nil {
		t.Error(err)
	}
}
