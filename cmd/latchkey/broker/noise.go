package broker

import (
	"strings"
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

// count counts a reason. The first of its kind within a minute is told to a person.
func (n *noise) count(b *Broker, reason string, detail ...string) {
	n.mu.Lock()
	if n.counts == nil {
		n.counts, n.since = map[string]int{}, b.now()
	}
	n.counts[reason]++
	first := n.counts[reason] == 1
	due := b.now().Sub(n.since) >= time.Minute
	n.mu.Unlock()
	if first {
		b.log("%s: a message that proves nothing; others of this minute are only counted: %s", reason,
			strings.Join(detail, ", "))
	}
	if due {
		n.flush(b)
	}
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
