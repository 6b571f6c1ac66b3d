//go:build linux

package broker

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
)

// serve lets the broker listen at a socket.
func (w *world) serve() (path string) {
	w.t.Helper()
	path = filepath.Join(w.dir, fmt.Sprintf("s%d", seeds.Add(1)))
	l, err := net.Listen("unix", path)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Serve(ctx, l) }()
	w.t.Cleanup(func() {
		stop()
		select {
		case err := <-done:
			if err != nil {
				w.t.Errorf("Serve: %v, want nil", err)
			}
		case <-time.After(20 * time.Second):
			w.t.Error("Serve does not end")
		}
	})
	return path
}

// over asks over a connection.
func (g *guest) over(path string) (*exchange.Answer, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	r := bufio.NewReaderSize(conn, exchange.MaxLine)
	var hello [16]byte
	_, _ = rand.Read(hello[:])
	if _, err := conn.Write(g.Ask(hello)); err != nil {
		return nil, err
	}
	line, err := r.ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	data, err := g.Agent.Challenge(line)
	if err != nil {
		return nil, err
	}
	if line, err = g.Request(g.evidence(data), nil, nil); err != nil {
		return nil, err
	}
	if _, err := conn.Write(line); err != nil {
		return nil, err
	}
	if line, err = r.ReadBytes('\n'); err != nil {
		return nil, err
	}
	return g.Agent.Answer(line)
}

const childVar = "LATCHKEY_TEST_BROKER"

// serveChild is a broker that is killed.
func serveChild(t *testing.T, dir string) {
	w := &world{t: t, dir: dir}
	private, err := ParseKey(w.read("key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	w.key = private
	w.at.Store(time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC).UnixNano())
	w.start()
	l, err := net.Listen("unix", os.Getenv(childVar+"_SOCKET"))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("ready")
	_ = w.Serve(context.Background(), l)
}
