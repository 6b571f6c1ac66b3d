//go:build linux

package broker

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence/evidencetest"
	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
)

func TestRelease(t *testing.T) {
	w := newWorld(t, secret("disk", "repeat", `kind = "luks"`, `luks-header = "`+strings.Repeat("ab", 32)+`"`)+
		secret("api", "repeat"))
	for _, technology := range []string{exchange.SNP, exchange.TDX} {
		g := w.guest(1, technology, "disk", "api")
		if technology == exchange.TDX {
			g.quoted = append(g.quoted, closedWith(0))
		}
		a := w.want(g, "released")
		if string(a.Secrets["disk"].Value) != "value of disk" ||
			a.Secrets["disk"].LUKSHeader != strings.Repeat("ab", 32) ||
			string(a.Secrets["api"].Value) != "value of api" ||
			a.Secrets["api"].LUKSHeader != "" {
			t.Errorf("%s: %+v", technology, a.Secrets)
		}
		status := func() exchange.State {
			s, err := exchange.ReadStatus(
				w.Answer(context.Background(), exchange.AskForStatus(g.Statement())), w.Key(), g.Statement(),
			)
			if err != nil {
				t.Fatal(err)
			}
			return s.State
		}
		if s := status(); s != exchange.Released {
			t.Errorf("status %s, want released", s)
		}
		forged := bytes.Replace(a.Receipt, []byte(`"mac":"`), []byte(`"mac":"AAAA`), 1)
		forged = bytes.Replace(forged, a.Receipt[len(a.Receipt)-12:], []byte("AAAAAAAA=\"}\n"), 1)
		w.Answer(context.Background(), forged)
		if s := status(); s != exchange.Released {
			t.Errorf("status %s after a forged receipt, want released", s)
		}
		w.Answer(context.Background(), a.Receipt)
		w.Answer(context.Background(), a.Receipt)
		w.restart() // what was received is still known
		if s := status(); s != exchange.Received {
			t.Errorf("status %s, want received", s)
		}
	}
	if n := len(w.events(evReceipt)); n != 2 {
		t.Errorf("%d receipts in the audit, want 2", n)
	}
	for _, e := range w.events(evRelease) {
		if !e.Emulated || e.Chip == "" || e.Digest == "" || len(e.NotProven) == 0 || e.Policy != name {
			t.Errorf("the audit says %+v", e)
		}
	}
	if text := string(w.read("state/audit.jsonl")) + string(w.read("state/state.json")); strings.Contains(
		text,
		"value of",
	) ||
		strings.Contains(text, hex.EncodeToString([]byte("value of"))) {
		t.Error("a secret is in the state")
	}
}

// closedWith sets RTMR3.
func closedWith(b byte) func(*evidencetest.QuoteParts) {
	return func(q *evidencetest.QuoteParts) {
		copy(q.Body[evidencetest.OffRTMR0+3*48:], bytes.Repeat([]byte{b}, 48))
	}
}

// TestDenials: what each lie is called. After the signature little is told.
func TestDenials(t *testing.T) {
	w := newWorld(t, secret("disk", "repeat"))
	other := w.amd.VCEK(t)
	for i, c := range []struct {
		want   string
		retry  bool
		change func([]byte)
	}{
		{"measurement", false, func(b []byte) { b[offMeasurement]++ }},
		{"debug", false, func(b []byte) { b[offPolicy+2] |= 0x08 }},
		{"policy", false, func(b []byte) { b[offPolicy+2] |= 0x04 }},
		{"policy", false, func(b []byte) { b[offVMPL] = 1 }},
		// Of another purpose; asked for by the host; of another chip.
		{"report-data", false, func(b []byte) { b[offReportData]++ }},
		{"report-data", false, func(b []byte) { clear(b[offReportData : offReportData+64]) }},
		{"certificate-missing", true, func(b []byte) { b[offChip]++ }},
		{reasonChip, false, func(b []byte) { clear(b[offChip : offChip+64]) }}, // a masked one
		{"report-reserved", false, func(b []byte) { b[0x29f] = 1 }},
	} {
		w.pass(coolDown)
		g := w.guest(byte(i+1), exchange.SNP)
		g.change = append(g.change, c.change)
		a := g.ask()
		if got(a) != c.want || a.Denial != nil && a.Denial.Retry != c.retry {
			t.Errorf("case %d: %s (%+v), want %s", i, got(a), a.Denial, c.want)
		}
	}
	w.pass(coolDown)
	g := w.guest(40, exchange.SNP)
	w.ek, other = other, w.ek // another key of the same chip
	w.want(g, "signature")
	w.ek = other
	g = w.guest(41, exchange.TDX)
	g.quoted = append(g.quoted, closedWith(7))
	w.want(g, reasonClosed)
	w.want(w.guest(42, exchange.SNP, "disk", "no-such"), reasonNoSecret)
	g = w.guest(43, exchange.TDX)
	g.quoted = append(g.quoted, func(q *evidencetest.QuoteParts) { q.Body[evidencetest.OffMRTD]++ })
	w.want(g, reasonMeasurement)
	g = w.guest(44, exchange.SNP)
	g.technology = exchange.TDX // evidence of another technology than the statement says
	w.want(g, reasonMalformed)
	for _, e := range w.events(evDeny) {
		if e.Reason == "policy" && e.Detail == "" {
			t.Errorf("the owner's audit does not say why: %+v", e)
		}
	}
	if len(w.events(evRelease)) > 0 {
		t.Error("something was released")
	}
}

// TestLaunchHasKey: code that comes later in a launch has another key, and gets nothing.
func TestLaunchHasKey(t *testing.T) {
	w := newWorld(t, secret("disk", "repeat")+secret("api", "repeat"))
	first := w.guest(1, exchange.SNP)
	w.want(first, "released")
	w.want(w.guest(1, exchange.SNP), reasonLaunchKey)
	w.want(w.guest(1, exchange.SNP, "api"), reasonLaunchKey)
	w.restart()
	w.want(w.guest(1, exchange.SNP), reasonLaunchKey)
	w.want(first, "released") // the same key may ask again: an answer may be lost
	w.want(w.guest(2, exchange.SNP), "released")
}

// TestReplay: a challenge is answered once, in its time, and not after a restart.
func TestReplay(t *testing.T) {
	w := newWorld(t, secret("disk", "repeat"))
	g := w.guest(1, exchange.SNP)
	line := g.request()
	for _, want := range []string{"released", reasonNonce} {
		a, err := g.Agent.Answer(w.Answer(context.Background(), line))
		if err != nil || got(a) != want {
			t.Errorf("%v, %v, want %s", a, err, want)
		}
	}
	g = w.guest(2, exchange.SNP)
	line = g.request()
	w.pass(exchange.Lifetime + time.Second)
	if a, err := g.Agent.Answer(w.Answer(context.Background(), line)); err != nil || got(a) != reasonExpired ||
		!a.Denial.Retry {
		t.Errorf("late: %+v, %v, want %s", a, err, reasonExpired)
	}
	line = g.request()
	w.restart()
	if a, err := g.Agent.Answer(w.Answer(context.Background(), line)); err != nil || got(a) != reasonChallenge ||
		!a.Denial.Retry {
		t.Errorf("after a restart: %+v, %v, want %s", a, err, reasonChallenge)
	}
	// A denial uses no nonce up, and says the same again.
	g.change = append(g.change, func(b []byte) { b[offMeasurement]++ })
	line = g.request()
	for _, want := range []string{"measurement", "measurement"} {
		a, err := g.Agent.Answer(w.Answer(context.Background(), line))
		if err != nil || got(a) != want {
			t.Errorf("%v, %v, want %s", a, err, want)
		}
	}
}

func TestModes(t *testing.T) {
	w := newWorld(t, secret("disk", "repeat", `max = "2/h"`)+secret("rare", "once")+secret("api", "first-ask")+
		secret("asked", "ask"))
	rare := w.guest(1, exchange.SNP, "rare")
	w.want(rare, "released")
	w.want(rare, "released") // the same launch and key
	w.want(w.guest(2, exchange.SNP, "rare"), reasonOnce)
	w.restart()
	w.want(w.guest(3, exchange.SNP, "rare"), reasonOnce)

	w.want(w.guest(4, exchange.SNP), "released")
	second := w.guest(5, exchange.SNP)
	w.want(second, "released")
	w.want(second, "released") // is not counted again
	a := w.want(w.guest(6, exchange.SNP), reasonMax)
	if !a.Denial.Retry {
		t.Error("a limit is over some time, want retry")
	}
	w.restart()
	w.want(w.guest(6, exchange.SNP), reasonMax)
	w.pass(time.Hour)
	w.want(w.guest(7, exchange.SNP), "released")

	// api: chip and digest got other secrets by now, which approves nothing of this one.
	first := w.guest(8, exchange.SNP, "api")
	n := w.want(first, "pending").Pending.Request
	if err := w.Decide(n, true, ""); err != nil {
		t.Fatal(err)
	}
	w.want(first, "released")
	w.want(w.guest(9, exchange.SNP, "api"), "released") // the same chip and digest
	w.restart()
	w.want(w.guest(10, exchange.SNP, "api"), "released")
	w.want(w.guest(11, exchange.SNP, "asked"), "pending")
	w.want(w.guest(12, exchange.TDX, "api"), "pending")
}

// TestAsk: an approval is for one launch, key, digest, chip and set of secrets.
func TestAsk(t *testing.T) {
	w := newWorld(t, secret("asked", "ask")+secret("disk", "repeat"))
	g := w.guest(1, exchange.SNP, "asked", "disk")
	n := w.want(g, "pending").Pending.Request
	if again := w.want(g, "pending").Pending.Request; again != n {
		t.Errorf("asked again it is request %d, want %d", again, n)
	}
	waiting := w.Waiting()
	if len(waiting) != 1 || waiting[0].Number != n || waiting[0].Chip == "" ||
		!strings.Contains(strings.Join(waiting[0].Changed, " "), "chip is new") {
		t.Fatalf("waiting: %+v", waiting)
	}
	if err := w.Decide(n+1, true, ""); !errors.Is(err, ErrNoRequest) {
		t.Errorf("an approval of no request: %v, want ErrNoRequest", err)
	}
	if err := w.Decide(n, true, "another approver's"); !errors.Is(err, ErrChanged) {
		t.Errorf("an approval of what was not shown: %v, want ErrChanged", err)
	}
	if err := w.Decide(n, true, waiting[0].Shown()); err != nil {
		t.Fatal(err)
	}
	w.want(w.guest(1, exchange.SNP, "asked"), reasonLaunchKey) // another key of the launch
	// Another launch: the approval is not for it, and stays.
	second := w.guest(9, exchange.SNP, "asked")
	w.want(second, "pending")
	if a := w.want(g, "released"); len(a.Secrets) != 2 {
		t.Errorf("%d secrets, want 2", len(a.Secrets))
	}
	w.want(g, "released") // again
	w.want(second, "pending")
	other := w.guest(2, exchange.SNP, "asked")
	n2 := w.want(other, "pending").Pending.Request
	if n2 <= n {
		t.Errorf("request %d after %d: a number is used again", n2, n)
	}
	if err := w.Decide(n2, false, ""); err != nil {
		t.Fatal(err)
	}
	if a := w.want(other, reasonPerson); a.Denial.Retry {
		t.Error("a person's no is final")
	}
	// An approval lasts ten minutes, and not over a restart.
	late := w.guest(3, exchange.SNP, "asked")
	n3 := w.want(late, "pending").Pending.Request
	if err := w.Decide(n3, true, ""); err != nil {
		t.Fatal(err)
	}
	w.pass(patience)
	w.want(late, "pending")
	w.restart()
	if n4 := w.want(late, "pending").Pending.Request; n4 <= n3 {
		t.Errorf("request %d after a restart, want more than %d", n4, n3)
	}
	// The retry is judged anew.
	if err := w.Decide(w.want(late, "pending").Pending.Request, true, ""); err != nil {
		t.Fatal(err)
	}
	late.change = append(late.change, func(b []byte) { b[offPolicy+2] |= 0x08 })
	w.want(late, reasonDebug)
}

// TestCoolDown: only what proves itself counts, so that no stranger can lock an owner out.
func TestCoolDown(t *testing.T) {
	w := newWorld(t, secret("disk", "repeat"))
	for range 3 * maxDenials {
		g := w.guest(1, exchange.SNP)
		line := g.request()
		w.Answer(context.Background(), bytes.Replace(line, []byte(`"evidence":"A`), []byte(`"evidence":"B`), 1))
		w.Answer(context.Background(), []byte("{\"want\":\"release\"}\n"))
		w.Answer(context.Background(), []byte("GET / HTTP/1.1\r\n"))
	}
	if n := len(w.events(evDeny)); n > 0 {
		t.Errorf("%d lines of the audit about what proves nothing, want 0", n)
	}
	w.want(w.guest(2, exchange.SNP), "released")
	for i := range maxDenials {
		g := w.guest(byte(10+i), exchange.SNP)
		g.change = append(g.change, func(b []byte) { b[offMeasurement]++ })
		w.want(g, "measurement")
	}
	bad := w.guest(30, exchange.SNP)
	bad.change = append(bad.change, func(b []byte) { b[offMeasurement]++ })
	w.want(bad, reasonCoolDown) // whoever probes waits, too
	if n := len(w.events(evDeny)); n != maxDenials {
		t.Errorf("%d denials in the audit, want %d", n, maxDenials)
	}
	w.want(w.guest(3, exchange.SNP), "released") // evidence that is accepted is not a probe
	w.pass(coolDown)
	w.want(bad, "measurement")
	w.pass(time.Minute)
	w.Answer(context.Background(), []byte("{}\n"))
	noise := w.events(evNoise)
	if len(noise) == 0 || noise[0].Counts[reasonMalformed] == 0 {
		t.Errorf("noise: %+v, want a count of it", noise)
	}
}

// TestClock: a broker whose clock is before its last decision judges nothing.
func TestClock(t *testing.T) {
	w := newWorld(t, secret("disk", "repeat"))
	w.want(w.guest(1, exchange.SNP), "released")
	w.pass(-time.Minute)
	if a := w.want(w.guest(2, exchange.SNP), reasonClock); !a.Denial.Retry {
		t.Error("a clock is set right, want retry")
	}
	w.pass(2 * time.Minute)
	w.want(w.guest(2, exchange.SNP), "released")
}
