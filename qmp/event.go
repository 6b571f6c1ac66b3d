package qmp

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"
)

// Names of the events that vmlatch acts on (QEMU, qapi/run-state.json).
const (
	EventShutdown      = "SHUTDOWN"
	EventStop          = "STOP"
	EventResume        = "RESUME"
	EventReset         = "RESET"
	EventGuestPanicked = "GUEST_PANICKED"
	EventMemoryFailure = "MEMORY_FAILURE"

	// EventConnectionLost is made here, not by QEMU: the last event of every
	// subscription whose connection ended.
	EventConnectionLost = "VMLATCH_CONNECTION_LOST"
)

// critical are the events that decide about a launch.
var critical = [...]string{
	EventShutdown,
	EventStop,
	EventResume,
	EventReset,
	EventGuestPanicked,
	EventMemoryFailure,
	EventConnectionLost,
}

// Critical reports whether events of a name are latched: the last one is kept for
// [Conn.Latched] and is never dropped from a queue.
func Critical(name string) bool { return slices.Contains(critical[:], name) }

// Event is one event. Its data may come from the guest.
type Event struct {
	Name string
	Data json.RawMessage
	Time time.Time
}

// Subscription is a queue of events.
type Subscription struct {
	names []string
	limit int
	from  *fanout

	mu      sync.Mutex
	queue   []Event
	dropped uint64
	ended   bool
	wake    chan struct{} // holds one token when the queue may be non-empty
}

// fanout knows the subscriptions of a connection.
type fanout struct {
	mu      sync.Mutex
	subs    map[*Subscription]bool
	latched map[string]Event
	ended   bool
}

func (f *fanout) init() {
	f.subs = map[*Subscription]bool{}
	f.latched = map[string]Event{}
}

// Subscribe returns a queue of up to limit events with the given names, or of
// all events. Call Close on it when it is no longer read.
func (c *Conn) Subscribe(limit int, names ...string) *Subscription {
	s := &Subscription{names: names, limit: max(limit, 1), from: &c.events, wake: make(chan struct{}, 1)}
	f := &c.events
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		s.push(f.latched[EventConnectionLost])
		s.end()
		return s
	}
	f.subs[s] = true
	return s
}

// Latched returns the last event of a critical name, also one that came before
// there was a subscription.
func (c *Conn) Latched(name string) (Event, bool) {
	c.events.mu.Lock()
	defer c.events.mu.Unlock()
	e, ok := c.events.latched[name]
	return e, ok
}

func (f *fanout) publish(e Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.publishLocked(e)
}

func (f *fanout) publishLocked(e Event) {
	if Critical(e.Name) {
		f.latched[e.Name] = e
	}
	for s := range f.subs {
		s.push(e)
	}
}

// lost sends the synthetic last event and ends all subscriptions.
func (f *fanout) lost(reason error) {
	data, _ := json.Marshal(map[string]string{"reason": reason.Error()})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.publishLocked(Event{Name: EventConnectionLost, Data: data, Time: time.Now()})
	f.ended = true
	for s := range f.subs {
		s.end()
	}
	clear(f.subs)
}

// push queues an event. A full queue drops it, unless it is critical: then it
// takes the place of the queued one of its name, so that the queue never holds
// more than limit events and one of each critical name.
func (s *Subscription) push(e Event) {
	lost := e.Name == EventConnectionLost
	if len(s.names) > 0 && !lost && !slices.Contains(s.names, e.Name) {
		return
	}
	s.mu.Lock()
	if len(s.queue) >= s.limit {
		if !Critical(e.Name) {
			s.dropped++
			s.mu.Unlock()
			return
		}
		if i := slices.IndexFunc(s.queue, func(q Event) bool { return q.Name == e.Name }); i >= 0 {
			s.queue = slices.Delete(s.queue, i, i+1)
			s.dropped++
		}
	}
	s.queue = append(s.queue, e)
	s.mu.Unlock()
	s.signal()
}

func (s *Subscription) end() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.signal()
}

func (s *Subscription) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Next returns the oldest queued event, waiting for one. After
// EventConnectionLost, or after Close, it returns ErrClosed.
func (s *Subscription) Next(ctx context.Context) (Event, error) {
	for {
		s.mu.Lock()
		if len(s.queue) > 0 {
			e := s.queue[0]
			s.queue = s.queue[1:]
			s.mu.Unlock()
			return e, nil
		}
		ended := s.ended
		s.mu.Unlock()
		if ended {
			s.signal() // for other readers of the same queue
			return Event{}, ErrClosed
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		}
	}
}

// Dropped counts the events that the queue had no room for.
func (s *Subscription) Dropped() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dropped
}

// Close ends the subscription; queued events are lost.
func (s *Subscription) Close() {
	s.from.mu.Lock()
	delete(s.from.subs, s)
	s.from.mu.Unlock()
	s.mu.Lock()
	s.queue = nil
	s.mu.Unlock()
	s.end()
}
