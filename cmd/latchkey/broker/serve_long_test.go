//go:build linux && !quick

// These take long, and need no more than the others.

package broker

import (
	"bytes"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
)

// TestMany: of a thousand requests at once, each gets its answer, and what is given once is given
// to one.
func TestMany(t *testing.T) {
	w := newWorld(t, secret("rare", "once")+secret("disk", "repeat"))
	w.log = func(string, ...any) {}
	path := w.serve()
	n := 1000
	if testing.Short() {
		n = 100
	}
	var once, all, refused atomic.Int64
	var wg sync.WaitGroup
	gate := make(chan struct{}, 48)
	for i := range n {
		g := w.guest(byte(i), exchange.SNP, "disk")
		if i%10 == 0 {
			g = w.guest(byte(i), exchange.SNP, "disk", "rare")
		}
		id := [32]byte{byte(i), byte(i >> 8), 1}
		g.change = append(g.change, func(b []byte) { copy(b[offReportID:], id[:]) })
		wg.Go(func() {
			gate <- struct{}{}
			defer func() { <-gate }()
			a, err := g.over(path)
			switch {
			case err != nil:
				t.Errorf("launch %d: %v", i, err)
			case got(a) == "released" && len(a.Secrets) == 2:
				once.Add(1)
				all.Add(1)
			case got(a) == "released":
				all.Add(1)
			case got(a) == reasonOnce || got(a) == reasonCoolDown:
				refused.Add(1)
			default:
				t.Errorf("launch %d: %s", i, got(a))
			}
		})
	}
	wg.Wait()
	if once.Load() > 1 || all.Load()+refused.Load() != int64(n) {
		t.Errorf(
			"%d got what is given once, %d anything, %d nothing, of %d",
			once.Load(),
			all.Load(),
			refused.Load(),
			n,
		)
	}
	if got := len(w.events(evRelease)); got != int(all.Load()) {
		t.Errorf("%d releases in the audit, want %d", got, all.Load())
	}
}

// TestConnections: slow and silent ones, floods and long lines take nothing from others.
func TestConnections(t *testing.T) {
	w := newWorld(t, secret("disk", "repeat"))
	path := w.serve()
	dial := func() net.Conn {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	for range 2 * maxConns { // silent ones, as guests that have their secret
		dial()
	}
	half := dial()
	if _, err := half.Write([]byte(`{"want":"chal`)); err != nil {
		t.Fatal(err)
	}
	long := dial()
	go func() {
		for {
			if _, err := long.Write(bytes.Repeat([]byte("x"), 64<<10)); err != nil {
				return
			}
		}
	}()
	start := time.Now()
	if a, err := w.guest(1, exchange.SNP).over(path); err != nil || got(a) != "released" {
		t.Errorf("with them: %v, %v", a, err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("with them it takes %v", took)
	}
	_ = long.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := long.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("a line without an end: %v, want the connection closed", err)
	}
	_ = half.SetReadDeadline(time.Now().Add(messageTime + 5*time.Second))
	if _, err := half.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("half a message: %v, want the connection closed", err)
	}
}
