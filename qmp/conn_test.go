package qmp_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/integration/leak"
	"github.com/vmlatch/vmlatch/qmp"
	"github.com/vmlatch/vmlatch/qmp/qmptest"
)

func TestMain(m *testing.M) { leak.VerifyTestMain(m) }

func connect(t *testing.T, script string) (*qmp.Conn, *qmptest.Server) {
	t.Helper()
	nc, server := qmptest.Serve(t, script)
	c, err := qmp.NewConn(short(t), nc, qmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, server
}

// short is a context for steps that must end soon.
func short(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// brief is a context for steps that must time out.
func brief(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func TestExecute(t *testing.T) {
	c, _ := connect(t, qmptest.Negotiate+`
		< query-status
		> {"return": {"running": false, "status": "prelaunch"}, "id": $ID}
		< query-sev
		> {"id": $ID, "error": {"class": "CommandNotFound", "desc": "The command query-sev has not been found"}}
		< stop
		> {"id": $ID, "error": {"class": "GenericError", "desc": ""}}`)
	if v := c.Version().String(); v != "7.2.22" {
		t.Errorf("version %s", v)
	}
	status, err := qmp.QueryStatus{}.Execute(short(t), c)
	if err != nil || status.Status != "prelaunch" {
		t.Errorf("status %+v, %v", status, err)
	}
	_, err = qmp.QuerySEV{}.Execute(short(t), c)
	if !qmp.IsCommandNotFound(err) {
		t.Errorf("error %v has lost its class", err)
	}
	// An error without a description is an error all the same.
	if err := stop(short(t), c); err == nil {
		t.Error("an error reply with an empty description counts as success")
	}
}

// The tests below reproduce the defects of go-qemu's SocketMonitor.

func TestLargeReply(t *testing.T) {
	c, _ := connect(t, qmptest.Negotiate+"< query-qmp-schema\n>N 250000\n< query-qmp-schema\n>N 5000000")
	for _, want := range []int{250_000, 5_000_000} {
		var s string
		if err := c.Execute(short(t), "query-qmp-schema", nil, &s); err != nil || len(s) != want {
			t.Errorf("%d bytes, %v, want %d", len(s), err, want)
		}
	}
}

func TestRepliesSurviveEvents(t *testing.T) {
	var script strings.Builder
	script.WriteString(qmptest.Negotiate)
	for i := range 200 {
		fmt.Fprintf(&script, "< query-status\n> {\"return\": {\"status\": \"s%d\"}, \"id\": $ID}\n", i)
		script.WriteString("event*40 BLOCK_JOB_READY\n")
	}
	c, _ := connect(t, script.String())
	sub := c.Subscribe(10)
	defer sub.Close()
	for i := range 200 {
		s, err := qmp.QueryStatus{}.Execute(short(t), c)
		if want := fmt.Sprintf("s%d", i); err != nil || s.Status != want {
			t.Fatalf("reply %d is %q, %v", i, s.Status, err)
		}
	}
}

func TestEventsBeforeNegotiationEnds(t *testing.T) {
	c, _ := connect(t, qmptest.Greeting+`
		< qmp_capabilities
		> {"timestamp": {"seconds": 1, "microseconds": 2}, "event": "GUEST_PANICKED", "data": {"action": "pause"}}
		> {"return": {}, "id": $ID}`)
	e, ok := c.Latched(qmp.EventGuestPanicked)
	if !ok || string(e.Data) != `{"action": "pause"}` {
		t.Errorf("latched %+v, %t", e, ok)
	}
}

func TestNoEventConsumer(t *testing.T) {
	c, _ := connect(t, qmptest.Negotiate+`
		event*5000 NIC_RX_FILTER_CHANGED
		< query-status
		> {"return": {}, "id": $ID}`)
	if _, err := (qmp.QueryStatus{}).Execute(short(t), c); err != nil {
		t.Error(err)
	}
}

func TestSlowConsumerLosesOnlyWhatItMay(t *testing.T) {
	c, server := connect(t, qmptest.Negotiate+`
		wait subscribed
		event*3 STOP
		event*1000 NIC_RX_FILTER_CHANGED
		event*2 SHUTDOWN
		< query-status
		> {"return": {}, "id": $ID}`)
	sub := c.Subscribe(5)
	server.Signal("subscribed")
	if _, err := (qmp.QueryStatus{}).Execute(short(t), c); err != nil {
		t.Fatal(err)
	}
	var names []string
	for range 6 {
		e, err := sub.Next(short(t))
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, e.Name)
	}
	// The last SHUTDOWN is there, and the flood was counted, not queued.
	if names[len(names)-1] != qmp.EventShutdown {
		t.Errorf("queue %v does not end in SHUTDOWN", names)
	}
	if sub.Dropped() == 0 {
		t.Error("nothing was counted as dropped")
	}
	sub.Close()
	if _, err := sub.Next(short(t)); !errors.Is(err, qmp.ErrClosed) {
		t.Errorf("a closed subscription gives %v", err)
	}
}

func TestTwoSubscribersDoNotSteal(t *testing.T) {
	c, server := connect(t, qmptest.Negotiate+"wait go\nevent*3 STOP")
	a, b := c.Subscribe(10, qmp.EventStop), c.Subscribe(10)
	server.Signal("go")
	for range 3 {
		for name, s := range map[string]*qmp.Subscription{"a": a, "b": b} {
			if e, err := s.Next(short(t)); err != nil || e.Name != qmp.EventStop {
				t.Errorf("%s: %v, %v", name, e, err)
			}
		}
	}
}

func TestNextHonoursContext(t *testing.T) {
	c, _ := connect(t, qmptest.Negotiate)
	if _, err := c.Subscribe(1).Next(brief(t)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestLostConnectionIsAnEvent(t *testing.T) {
	c, server := connect(t, qmptest.Negotiate+"wait go\nclose")
	sub := c.Subscribe(1, qmp.EventShutdown)
	server.Signal("go")
	if e, err := sub.Next(short(t)); err != nil || e.Name != qmp.EventConnectionLost {
		t.Errorf("%+v, %v", e, err)
	}
	if _, err := sub.Next(short(t)); !errors.Is(err, qmp.ErrClosed) {
		t.Errorf("afterwards: %v", err)
	}
	late := c.Subscribe(1)
	if e, err := late.Next(short(t)); err != nil || e.Name != qmp.EventConnectionLost {
		t.Errorf("a late subscriber sees %+v, %v", e, err)
	}
	if err := stop(short(t), c); !errors.Is(err, qmp.ErrClosed) {
		t.Errorf("a command afterwards: %v", err)
	}
}

func TestStoppedPeer(t *testing.T) {
	c, server := connect(t, qmptest.Negotiate+`
		< query-status
		wait go
		> {"return": {"status": "late"}, "id": $ID}
		< query-status
		> {"return": {"status": "fresh"}, "id": $ID}`)
	if _, err := (qmp.QueryStatus{}).Execute(brief(t), c); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error %v", err)
	}
	server.Signal("go")
	if s, err := (qmp.QueryStatus{}).Execute(short(t), c); err != nil || s.Status != "fresh" {
		t.Errorf("after the late reply: %+v, %v", s, err)
	}
	if c.Strays() != 1 {
		t.Errorf("%d strays, want 1", c.Strays())
	}
}

func TestStoppedPeerThatReadsNothing(t *testing.T) {
	nc, server := qmptest.Serve(t, qmptest.Negotiate+"wait never")
	c, err := qmp.NewConn(short(t), nc, qmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	defer server.Signal("never")
	huge := strings.Repeat("x", 8<<20) // more than socket buffers hold
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	waits := make(chan error, 1)
	time.AfterFunc(100*time.Millisecond, func() { waits <- c.Execute(brief(t), "z", nil, nil) })
	if err := c.Execute(ctx, "x", huge, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a command that the peer does not read: %v, want DeadlineExceeded", err)
	}
	if err := <-waits; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a command behind it: %v, want DeadlineExceeded", err)
	}
	// Half a command is on the wire: the connection says so and does not hang.
	if err := c.Execute(short(t), "y", nil, nil); !errors.Is(err, qmp.ErrClosed) ||
		!strings.Contains(err.Error(), "cut off") {
		t.Errorf("the next command: %v, want that one was cut off", err)
	}
}

func TestSecondClientTimesOut(t *testing.T) {
	nc, _ := qmptest.Serve(t, "")
	_, err := qmp.NewConn(brief(t), nc, qmp.Options{})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "another client") {
		t.Errorf("error %v", err)
	}
}

func TestStrayIDs(t *testing.T) {
	c, _ := connect(t, qmptest.Negotiate+`
		< query-status
		> {"return": {"status": "unasked"}, "id": 4711}
		> {"return": {"status": "text id"}, "id": "a"}
		> {"error": {"class": "GenericError", "desc": "no id"}}
		> {"return": {"status": "mine"}, "id": $ID}
		> {"return": {"status": "again"}, "id": $ID}
		< query-status
		> {"return": {"status": "next"}, "id": $ID}`)
	for _, want := range []string{"mine", "next"} {
		if s, err := (qmp.QueryStatus{}).Execute(short(t), c); err != nil || s.Status != want {
			t.Errorf("%+v, %v, want %s", s, err, want)
		}
	}
	if c.Strays() != 4 {
		t.Errorf("%d strays, want 4", c.Strays())
	}
}

func TestHalfLinesAreJoined(t *testing.T) {
	c, server := connect(t, qmptest.Negotiate+`
		< query-status
		>> {"return": {"status":
		wait go
		> "whole"}, "id": $ID}`)
	time.AfterFunc(20*time.Millisecond, func() { server.Signal("go") })
	if s, err := (qmp.QueryStatus{}).Execute(short(t), c); err != nil || s.Status != "whole" {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestNewlineAlone: a line may come whole but for its end.
func TestNewlineAlone(t *testing.T) {
	c, server := connect(t, qmptest.Negotiate+`
		< query-status
		>> {"return": {"status": "whole"}, "id": $ID}
		wait go
		> `)
	time.AfterFunc(20*time.Millisecond, func() { server.Signal("go") })
	if s, err := (qmp.QueryStatus{}).Execute(short(t), c); err != nil || s.Status != "whole" {
		t.Errorf("%+v, %v, want whole", s, err)
	}
}

func TestConcurrentCommands(t *testing.T) {
	const answer = "< query-status\n> {\"return\": {\"status\": \"$ID\"}, \"id\": $ID}\n"
	c, _ := connect(t, qmptest.Negotiate+strings.Repeat(answer, 400))
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]bool{}
	for range 8 {
		wg.Go(func() {
			for range 50 {
				s, err := qmp.QueryStatus{}.Execute(context.Background(), c)
				mu.Lock()
				if err != nil || seen[s.Status] {
					t.Errorf("%+v, %v", s, err)
				}
				seen[s.Status] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

func TestCloseIsIdempotentAndEndsCalls(t *testing.T) {
	c, _ := connect(t, qmptest.Negotiate+"< query-status")
	failed := make(chan error)
	go func() {
		_, err := qmp.QueryStatus{}.Execute(context.Background(), c)
		failed <- err
	}()
	time.Sleep(10 * time.Millisecond)
	for range 3 {
		_ = c.Close()
	}
	if err := <-failed; !errors.Is(err, qmp.ErrClosed) {
		t.Errorf("error %v", err)
	}
}

func TestOOB(t *testing.T) {
	nc, _ := qmptest.Serve(t, qmptest.Negotiate+"< migrate-pause\n> {\"return\": {}, \"id\": $ID}")
	c, err := qmp.NewConn(short(t), nc, qmp.Options{OOB: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.ExecuteOOB(short(t), "migrate-pause", nil, nil); err != nil {
		t.Error(err)
	}
	plain, _ := connect(t, qmptest.Negotiate)
	if err := plain.ExecuteOOB(short(t), "migrate-pause", nil, nil); err == nil {
		t.Error("out of band without negotiation succeeds")
	}
}

// TestDeadlinesDoNotPoisonTheConnection: contexts that end just as a command is
// written must not leave a deadline behind.
func TestDeadlinesDoNotPoisonTheConnection(t *testing.T) {
	c, _ := connect(t, qmptest.Negotiate+strings.Repeat("< stop\n> {\"return\": {}, \"id\": $ID}\n", 4000))
	for i := range 2000 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i%40)*time.Microsecond)
		_ = stop(ctx, c)
		cancel()
		if err := stop(short(t), c); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
	}
}

// stop is a command without arguments, and without an answer.
func stop(ctx context.Context, c *qmp.Conn) error { return c.Execute(ctx, "stop", nil, nil) }
