// Package asked is what guests of tests ask for, by HTTP.
package asked

import (
	"net"
	"net/http"
	"slices"
	"sync"
)

// Log answers guests, and keeps what they asked for.
type Log struct {
	mu   sync.Mutex
	list []string
}

// Serve answers at a listener until that is closed, with a script of iPXE that does nothing.
func (l *Log) Serve(at net.Listener) {
	_ = http.Serve(at, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		l.mu.Lock()
		l.list = append(l.list, host+" "+r.URL.Path)
		l.mu.Unlock()
		_, _ = w.Write([]byte("#!ipxe\n"))
	}))
}

// All is what was asked for, in order: "ADDRESS PATH" with the address of who asked.
func (l *Log) All() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.list)
}
