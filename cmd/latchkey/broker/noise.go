package broker

import (
	"sync"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
)

// noise counts what proves nothing. One line of the audit tells of a minute, and is not waited for.
type noise struct {
	mu      sync.Mutex
	counts  map[string]int
	since   time.Time
	reasons map[exchange.SHA512]outcome
	recent  []exchange.SHA512
}

// maxNoise bounds how many reasons of unverified denials are remembered, so that a host that asks
// for the status is told.
const maxNoise = 1024

// count counts a reason. It reports whether it is the first of its kind within a minute, so that a
// person is told.
func (n *noise) count(b *Broker, reason string) (first bool) {
	n.mu.Lock()
	if n.counts == nil {
		n.counts, n.since = map[string]int{}, b.now()
	}
	n.counts[reason]++
	first = n.counts[reason] == 1
	due := b.now().Sub(n.since) >= time.Minute
	n.mu.Unlock()
	if due {
		n.flush(b)
	}
	return first
}

// flush writes what was counted.
func (n *noise) flush(b *Broker) {
	n.mu.Lock()
	counts := n.counts
	n.counts = nil
	n.mu.Unlock()
	if len(counts) == 0 || b.dry {
		return
	}
	_ = b.store.do(func(t *tx) { t.add(&Event{Event: evNoise, Counts: counts}) })
}

func (n *noise) note(hash exchange.SHA512, o outcome) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.reasons == nil {
		n.reasons = map[exchange.SHA512]outcome{}
	}
	if _, had := n.reasons[hash]; !had {
		n.recent = append(n.recent, hash)
	}
	n.reasons[hash] = o
	if len(n.recent) > maxNoise {
		delete(n.reasons, n.recent[0])
		n.recent = n.recent[1:]
	}
}

func (n *noise) outcome(hash exchange.SHA512) outcome {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.reasons[hash]
}
