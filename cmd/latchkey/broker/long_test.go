//go:build !quick

package broker

import (
	"bufio"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
)

// TestKilled: a broker that is killed at any moment gives nothing twice that is given once, and
// what it gave is in its audit.
func TestKilled(t *testing.T) {
	if dir := os.Getenv(childVar); dir != "" {
		serveChild(t, dir)
		return
	}
	w := newWorld(t, secret("rare", "once")+secret("disk", "repeat"))
	_ = w.Close()
	key, _, err := encodeKey(w.key)
	if err != nil {
		t.Fatal(err)
	}
	w.write("key.pem", string(key))
	rounds := 40
	if testing.Short() {
		rounds = 5
	}
	var once, answered atomic.Int64
	launches := byte(0)
	for round := range rounds {
		path := filepath.Join(w.dir, fmt.Sprintf("k%d", round))
		c := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		c.Env = append(os.Environ(), childVar+"="+w.dir, childVar+"_SOCKET="+path)
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
			t.Fatalf("round %d: %q, %v", round, line, err)
		}
		var wg sync.WaitGroup
		for range 4 {
			launches++
			g := w.guest(launches, exchange.SNP, "disk")
			if launches%2 == 0 {
				g = w.guest(launches, exchange.SNP, "rare", "disk")
			}
			wg.Go(func() {
				a, err := g.over(path)
				if err != nil || got(a) != "released" {
					return
				}
				answered.Add(1)
				if len(a.Secrets) == 2 {
					once.Add(1)
				}
			})
		}
		var b [1]byte
		_, _ = rand.Read(b[:])
		time.Sleep(time.Duration(b[0]) * 100 * time.Microsecond)
		_ = c.Process.Kill()
		_ = c.Wait()
		wg.Wait()
	}
	if once.Load() > 1 {
		t.Errorf("what is given once was given %d times", once.Load())
	}
	w.start()
	releases := w.events(evRelease)
	first := map[string]bool{}
	for _, e := range releases {
		if strings.Contains(strings.Join(e.Secrets, " "), "rare") {
			first[e.Launch] = true
		}
	}
	if len(first) > 1 || len(releases) < int(answered.Load()) {
		t.Errorf("the audit has %d releases, %d launches with what is given once; %d were answered", len(releases),
			len(first), answered.Load())
	}
	t.Logf("%d answered of %d, %d in the audit", answered.Load(), 4*rounds, len(releases))
}
