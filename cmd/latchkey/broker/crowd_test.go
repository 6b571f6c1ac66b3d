//go:build linux

package broker

import (
	"sync"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
)

// TestClockAtOnce: among many requests the clock goes on, and none of them takes it for one that
// was turned back.
func TestClockAtOnce(t *testing.T) {
	w := newWorld(t, secret("disk", "repeat"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	c := w.config()
	c.Now = func() time.Time {
		at := w.at.Add(int64(time.Microsecond))
		time.Sleep(time.Millisecond) // others get on meanwhile
		return time.Unix(0, at)
	}
	c.Log = func(string, ...any) {}
	b, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	w.Broker = b
	var all sync.WaitGroup
	for i := range 64 {
		g := w.guest(byte(i), exchange.SNP)
		id := [32]byte{byte(i), 7}
		g.change = append(g.change, func(r []byte) { copy(r[offReportID:], id[:]) })
		all.Go(func() {
			for range 4 {
				if a := g.ask(); a.Denial != nil && a.Denial.Reason == reasonClock {
					t.Error("the clock is said to have been turned back")
				}
			}
		})
	}
	all.Wait()
}

// TestPlaces: a chip has few places for what waits; what is not asked any more makes room.
func TestPlaces(t *testing.T) {
	w := newWorld(t, secret("asked", "ask"))
	for i := range maxOfChip {
		w.want(w.guest(byte(1+i), exchange.SNP, "asked"), "pending")
	}
	one := w.guest(100, exchange.SNP, "asked")
	w.want(one, reasonBusy)
	for _, r := range w.Waiting()[:2] {
		if err := w.Decide(r.Number, false, ""); err != nil {
			t.Fatal(err)
		}
	}
	two := w.guest(101, exchange.SNP, "asked")
	w.want(two, "pending") // a refusal makes room
	w.pass(4 * pollPending)
	w.want(one, "pending")
	for _, r := range w.Waiting() {
		if r.Answer == "" && r.Launch != w.Waiting()[len(w.Waiting())-1].Launch {
			t.Errorf("request %d waits, and is not asked any more", r.Number)
		}
	}
}

// TestNotRecorded: what cannot be written did not happen: nothing waits, and no number is used.
func TestNotRecorded(t *testing.T) {
	w := newWorld(t, secret("asked", "ask"))
	if err := w.store.audit.Close(); err != nil {
		t.Fatal(err)
	}
	w.want(w.guest(1, exchange.SNP, "asked"), reasonUnavailable)
	w.want(w.guest(2, exchange.TDX, "asked"), reasonUnavailable)
	if list := w.Waiting(); len(list) > 0 {
		t.Errorf("%d wait of which the audit knows nothing", len(list))
	}
}

// TestLoops: who asks in a loop does not fill the disk.
func TestLoops(t *testing.T) {
	w := newWorld(t, secret("rare", "once"))
	w.log = func(string, ...any) {}
	w.want(w.guest(1, exchange.SNP, "rare"), "released")
	for range maxNoted {
		w.want(w.guest(2, exchange.SNP, "rare"), reasonOnce)
	}
	w.want(w.guest(2, exchange.SNP, "rare"), reasonCoolDown)
	if n := len(w.events(evDeny)); n != maxNoted {
		t.Errorf("%d denials in the audit, want %d", n, maxNoted)
	}
	w.pass(coolDown)
	w.want(w.guest(2, exchange.SNP, "rare"), reasonOnce)
}

// TestNonces: strangers with genuine evidence cannot fill the list of nonces.
func TestNonces(t *testing.T) {
	w := newWorld(t, secret("disk", "repeat"))
	w.log = func(string, ...any) {}
	for range 4 {
		g := w.guest(1, exchange.SNP)
		g.change = append(g.change, func(b []byte) { b[offMeasurement]++ })
		w.want(g, "measurement")
	}
	if n := len(w.nonces); n > 0 {
		t.Errorf("%d nonces are kept of what was denied", n)
	}
}
