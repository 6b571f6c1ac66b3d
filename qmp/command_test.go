package qmp_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/qmp"
	"github.com/vmlatch/vmlatch/qmp/qmptest"
)

// canned is a QEMU that gives one answer and remembers what it was asked.
type canned struct {
	answer string
	err    error
	asked  string
}

func (c *canned) Execute(_ context.Context, command string, args, out any) error {
	c.asked = command
	if args != nil {
		b, err := json.Marshal(args)
		if err != nil {
			return err
		}
		c.asked += " " + string(b)
	}
	if c.err != nil {
		return c.err
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal([]byte(c.answer), out)
}

// TestCommands: each command's name, its arguments, and what is read of the answer.
func TestCommands(t *testing.T) {
	type run func(context.Context, qmp.Executor) (any, error)
	nothing := func(do func(context.Context, qmp.Executor) error) run {
		return func(ctx context.Context, e qmp.Executor) (any, error) { return nil, do(ctx, e) }
	}
	gpa := uint64(0x1000)
	for _, c := range []struct {
		run    run
		asked  string
		answer string
		want   any
	}{
		{
			func(ctx context.Context, e qmp.Executor) (any, error) { return qmp.QueryStatus{}.Execute(ctx, e) },
			"query-status",
			`{"running": true, "status": "running"}`,
			qmp.Status{Running: true, Status: "running"},
		},
		{nothing(qmp.Cont{}.Execute), "cont", `{}`, nil},
		{
			func(ctx context.Context, e qmp.Executor) (any, error) { return qmp.QueryQMPSchema{}.Execute(ctx, e) },
			"query-qmp-schema",
			`[{"name":"a"},1]`,
			[]json.RawMessage{json.RawMessage(`{"name":"a"}`), json.RawMessage("1")},
		},
		{
			func(ctx context.Context, e qmp.Executor) (any, error) {
				return qmp.QOMListProperties{Type: "tdx-guest"}.Execute(ctx, e)
			},
			`qom-list-properties {"typename":"tdx-guest"}`,
			`[{"name":"a"},{"name":"b"}]`,
			[]string{"a", "b"},
		},
		{
			func(ctx context.Context, e qmp.Executor) (any, error) { return qmp.QuerySEV{}.Execute(ctx, e) },
			"query-sev",
			`{"enabled": true, "api-major": 1, "api-minor": 55, "build-id": 21, "state": "launch-secret",
			"sev-type": "sev", "policy": 5, "handle": 9, "snp-policy": 7}`,
			qmp.SEVInfo{
				Enabled: true, APIMajor: 1, APIMinor: 55, BuildID: 21, State: "launch-secret", Type: "sev",
				Policy: 5, Handle: 9, SNPPolicy: 7,
			},
		},
		{
			func(ctx context.Context, e qmp.Executor) (any, error) {
				return qmp.QuerySEVCapabilities{}.Execute(ctx, e)
			},
			"query-sev-capabilities",
			`{"pdh":"AQ==","cert-chain":"Ag==","cpu0-id":"Aw==","cbitpos":51,"reduced-phys-bits":1}`,
			qmp.SEVCapabilities{
				PDH: []byte{1}, CertChain: []byte{2}, CPU0ID: []byte{3}, CBitPos: 51,
				ReducedPhysBits: 1,
			},
		},
		{
			func(ctx context.Context, e qmp.Executor) (any, error) {
				return qmp.QuerySEVLaunchMeasure{}.Execute(ctx, e)
			},
			"query-sev-launch-measure",
			`{"data":"AQID"}`,
			[]byte{1, 2, 3},
		},
		{
			nothing(qmp.SEVInjectLaunchSecret{PacketHeader: []byte{1}, Secret: []byte{2}, GPA: &gpa}.Execute),
			`sev-inject-launch-secret {"packet-header":"AQ==","secret":"Ag==","gpa":4096}`,
			`{}`,
			nil,
		},
		{
			nothing(qmp.SEVInjectLaunchSecret{PacketHeader: []byte{1}, Secret: []byte{2}}.Execute),
			`sev-inject-launch-secret {"packet-header":"AQ==","secret":"Ag=="}`,
			`{}`,
			nil,
		},
	} {
		e := &canned{answer: c.answer}
		got, err := c.run(t.Context(), e)
		if err != nil || e.asked != c.asked || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, %v\nwant %s: %+v", e.asked, got, err, c.asked, c.want)
		}
		refused := &qmp.Error{Op: "x", Class: "GenericError", Desc: "no"}
		if _, err := c.run(t.Context(), &canned{err: refused}); err != refused {
			t.Errorf("%s: refused: %v, want %v", e.asked, err, refused)
		}
	}
}

func TestErrorsInWords(t *testing.T) {
	for want, err := range map[string]error{
		"qmp: stop: not now":           &qmp.Error{Op: "stop", Class: "GenericError", Desc: "not now"},
		"qmp: stop: ":                  &qmp.Error{Op: "stop", Class: "GenericError"},
		"qmp: stop: connection closed": &qmp.Error{Op: "stop", Err: qmp.ErrClosed},
	} {
		if err.Error() != want {
			t.Errorf("%q, want %q", err, want)
		}
	}
	if qmp.IsCommandNotFound(&qmp.Error{Op: "stop", Class: "GenericError"}) || qmp.IsCommandNotFound(errors.New("x")) {
		t.Error("another error counts as CommandNotFound")
	}
}

func TestCritical(t *testing.T) {
	for name, want := range map[string]bool{
		qmp.EventShutdown:      true,
		qmp.EventStop:          true,
		qmp.EventResume:        true,
		qmp.EventReset:         true,
		qmp.EventGuestPanicked: true,
		qmp.EventMemoryFailure: true, qmp.EventConnectionLost: true, "NIC_RX_FILTER_CHANGED": false, "": false,
	} {
		if got := qmp.Critical(name); got != want {
			t.Errorf("%s: %t, want %t", name, got, want)
		}
	}
}

// TestLogHoldsNoSecret: a command's name, and how it ended, never its arguments.
func TestLogHoldsNoSecret(t *testing.T) {
	nc, _ := qmptest.Serve(t, qmptest.Negotiate+`
		< sev-inject-launch-secret
		> {"error": {"class": "GenericError", "desc": "no"}, "id": $ID}`)
	var log strings.Builder
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c, err := qmp.NewConn(short(t), nc, qmp.Options{Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	secret := qmp.SEVInjectLaunchSecret{PacketHeader: []byte("header"), Secret: []byte("secret")}
	if err := secret.Execute(short(t), c); err == nil {
		t.Error("an error reply is lost")
	}
	logger.Debug("value", "packet", secret)
	text := log.String()
	for _, want := range []string{"command=sev-inject-launch-secret", "took=", "no", "packet=[redacted]"} {
		if !strings.Contains(text, want) {
			t.Errorf("the log lacks %s:\n%s", want, text)
		}
	}
	for _, bad := range []string{"c2VjcmV0", "secret]", "header", "115 101 99"} {
		if strings.Contains(text, bad) {
			t.Errorf("the log has %s:\n%s", bad, text)
		}
	}
}

// TestDial: over a socket's path, and a path where no QEMU listens.
func TestDial(t *testing.T) {
	path := filepath.Join(t.TempDir(), "qmp.sock")
	if _, err := qmp.Dial(short(t), path, qmp.Options{}); err == nil ||
		!strings.HasPrefix(err.Error(), "qmp: connect: ") {
		t.Errorf("no socket: %v, want an error of connect", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		_, _ = nc.Write([]byte(greeting + "\n"))
		_, _ = nc.Read(make([]byte, 4096)) // the command: a reply before it is a stray
		_, _ = nc.Write([]byte(`{"return": {}, "id": 1}` + "\n"))
		_, _ = nc.Read(make([]byte, 1)) // until the client hangs up
	}()
	c, err := qmp.Dial(short(t), path, qmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(c.Greeting()) || !strings.Contains(string(c.Greeting()), `"major": 7`) {
		t.Errorf("greeting %s, want QEMU's", c.Greeting())
	}
	select {
	case <-c.Done():
		t.Errorf("the connection has ended: %v", c.Err())
	default:
	}
	if err := c.Err(); err != nil {
		t.Errorf("the error of an open connection is %v, want nil", err)
	}
	_ = c.Close()
	<-c.Done()
	if err := c.Err(); !errors.Is(err, qmp.ErrClosed) {
		t.Errorf("the error of a closed connection is %v, want ErrClosed", err)
	}
}

// TestHalfALineAtTheEnd is told as what it is.
func TestHalfALineAtTheEnd(t *testing.T) {
	c, _ := connect(t, qmptest.Negotiate+"< query-status\n>> {\"return\": {\"sta\nclose")
	_, err := qmp.QueryStatus{}.Execute(short(t), c)
	if !errors.Is(err, qmp.ErrClosed) || !strings.Contains(err.Error(), "in the middle of a line") {
		t.Errorf("%v, want that it ended in the middle of a line", err)
	}
	whole, _ := connect(t, qmptest.Negotiate+"< query-status\nclose")
	if _, err := (qmp.QueryStatus{}).Execute(short(t), whole); strings.Contains(err.Error(), "line") {
		t.Errorf("%v, want a closed connection", err)
	}
}

// TestWhatCannotBeSent is refused before anything is.
func TestWhatCannotBeSent(t *testing.T) {
	c, _ := connect(t, qmptest.Negotiate+"< query-status\n> {\"return\": {}, \"id\": $ID}")
	if err := c.Execute(short(t), "x", func() {}, nil); err == nil {
		t.Error("a function is an argument")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Execute(ended, "x", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that has ended: %v, want Canceled", err)
	}
	if err := c.Execute(short(t), "query-status", nil, nil); err != nil {
		t.Errorf("the next command: %v", err)
	}
}

// TestMonitorErrors: what go-qemu's callers see of a bad command and of a connection
// that has ended.
func TestMonitorErrors(t *testing.T) {
	nc, _ := qmptest.Serve(t, qmptest.Negotiate+"< migrate-pause\n> {\"return\": {}, \"id\": $ID}")
	c, err := qmp.NewConn(short(t), nc, qmp.Options{OOB: true})
	if err != nil {
		t.Fatal(err)
	}
	m := c.Monitor(short(t))
	if _, err := m.Run([]byte("{")); err == nil || !strings.Contains(err.Error(), "run: command") {
		t.Errorf("half a command: %v, want an error about it", err)
	}
	if b, err := m.Run([]byte(`{"exec-oob": "migrate-pause", "arguments": {"a": 1}}`)); err != nil ||
		string(b) != `{"return":{}}` {
		t.Errorf("out of band: %s, %v, want an empty return", b, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	events, err := m.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, open := <-events; open {
		t.Error("an event, want the end of the channel with its context")
	}
	_ = m.Disconnect()
	if err := m.Connect(); !errors.Is(err, qmp.ErrClosed) {
		t.Errorf("after Disconnect: %v, want ErrClosed", err)
	}
}
