package broker

import (
	"fmt"
	"slices"
	"time"
)

// Bounds of what is remembered.
const (
	maxLaunches   = 200_000 // the oldest is forgotten
	maxStatements = 4096
)

// launch is a launch that was accepted: it is served to one key.
type launch struct {
	key   string
	given map[string]bool // secrets, by policy and name
}

// state is what follows from the audit. It changes only by events.
type state struct {
	head     Head
	launches map[string]*launch
	order    []string               // of launches, the oldest first
	served   map[string]string      // policy/secret: the first launch that got it
	times    map[string][]time.Time // policy/secret: when launches got it, within the longest limit
	known    map[string]bool        // policy, chip and digest that got something
	approved map[string]bool        // policy/secret, chip and digest that a person approved
	denied   map[string][]time.Time // policy and chip: verified evidence that was refused
	marks    map[string]uint64      // the highest numbers of bundles
	request  uint64                 // the last number of a request
	outcomes map[string]outcome     // by statement
	recent   []string               // statements, the oldest first
}

// outcome is what became of a statement.
type outcome struct {
	broker  string // key that the guest pins
	state   string // as in exchange.Status
	reason  string
	receipt string
}

// longest is the longest time of a limit.
const longest = 24 * time.Hour

// coolDown is how long denials of verified evidence count, and how many there may be.
const (
	coolDown   = 10 * time.Minute
	maxDenials = 8
)

// probes are the denials by which a host could find out what a policy expects. Limits are none.
var probes = map[string]bool{reasonPolicy: true, reasonMeasurement: true, reasonChip: true, reasonDebug: true}

func newState() *state {
	return &state{
		launches: map[string]*launch{}, served: map[string]string{}, times: map[string][]time.Time{},
		known: map[string]bool{}, approved: map[string]bool{}, denied: map[string][]time.Time{},
		marks: map[string]uint64{}, outcomes: map[string]outcome{},
	}
}

func secretKey(policy, secret string) string { return policy + "/" + secret }

// knownKey names what was given something before. Chips without a name are never known.
func knownKey(policy, chip, digest string) string { return policy + " " + chip + " " + digest }

// approvedKey names what a person approved of a secret.
func approvedKey(policy, secret, chip, digest string) string {
	return secretKey(policy, secret) + " " + chip + " " + digest
}

// apply is what an event changes. undo takes it back.
func (s *state) apply(e *Event, h Head) (undo func()) {
	var list []func()
	was := s.head
	s.head = h
	list = append(list, func() { s.head = was })
	if e.Launch != "" && e.Key != "" {
		list = append(list, s.addLaunch(e)...)
	}
	switch e.Event {
	case evRelease:
		list = append(list, s.release(e)...)
		list = append(list, s.become(e.Statement, outcome{e.Broker, "released", "", e.Receipt}))
	case evDeny:
		if who := e.Policy + " " + e.Chip; probes[e.Reason] {
			list = append(list, set(s.denied, who, trim(s.denied[who], e.At, coolDown)))
		}
		list = append(list, s.become(e.Statement, outcome{e.Broker, "denied", e.Reason, ""}))
	case evPending:
		old := s.request
		s.request = max(s.request, e.Request)
		list = append(list, func() { s.request = old }, s.become(e.Statement, outcome{e.Broker, "pending", "", ""}))
	case evReceipt:
		list = append(list, s.become(e.Statement, outcome{e.Broker, "received", "", e.Receipt}))
	case evLoad:
		for k, n := range e.Marks {
			list = append(list, set(s.marks, k, max(n, s.marks[k])))
		}
	}
	return func() {
		for _, f := range slices.Backward(list) {
			f()
		}
	}
}

// hostTrusted is the mark of a broker whose guests trust their hosts.
const hostTrusted = "host-trusted"

// kind refuses rules of another kind than a broker had before.
func (s *state) kind(r *Rules) error {
	switch marked := s.marks[hostTrusted] > 0; {
	case marked && !r.hostTrusted():
		return fmt.Errorf("%w: this state is of guests that trust their hosts, so its key may not serve others",
			ErrConfig)
	case !marked && r.hostTrusted() && (len(s.launches) > 0 || len(s.marks) > 0):
		return fmt.Errorf(
			"%w: this state is of guests that do not trust their hosts: those that do need a broker with"+
				" a key and a state of its own (broker init DIR, serve --key DIR --state DIR)",
			ErrConfig,
		)
	}
	return nil
}

// set changes an entry and returns how to take it back.
func set[V any](m map[string]V, key string, v V) (undo func()) {
	old, had := m[key]
	m[key] = v
	return func() {
		if had {
			m[key] = old
		} else {
			delete(m, key)
		}
	}
}

// trim adds a time to those that still count.
func trim(list []time.Time, at time.Time, within time.Duration) []time.Time {
	list = slices.Clone(list)
	list = slices.DeleteFunc(list, func(t time.Time) bool { return at.Sub(t) >= within })
	return append(list, at)
}

func (s *state) addLaunch(e *Event) []func() {
	if s.launches[e.Launch] != nil {
		return nil
	}
	undo := []func(){set(s.launches, e.Launch, &launch{key: e.Key, given: map[string]bool{}})}
	order := s.order
	s.order = append(s.order, e.Launch)
	undo = append(undo, func() { s.order = order })
	if len(s.order) > maxLaunches {
		oldest := s.order[0]
		l := s.launches[oldest]
		delete(s.launches, oldest)
		s.order = s.order[1:]
		undo = append(undo, func() { s.launches[oldest] = l })
	}
	return undo
}

func (s *state) release(e *Event) (undo []func()) {
	l := s.launches[e.Launch]
	for _, name := range e.Secrets {
		key := secretKey(e.Policy, name)
		if l == nil || l.given[key] {
			continue
		}
		l.given[key] = true
		undo = append(undo, func() { delete(l.given, key) }, set(s.times, key, trim(s.times[key], e.At, longest)))
		if s.served[key] == "" {
			undo = append(undo, set(s.served, key, e.Launch))
		}
	}
	if e.Chip == "" {
		return undo
	}
	undo = append(undo, set(s.known, knownKey(e.Policy, e.Chip, e.Digest), true))
	if e.Request != 0 {
		for _, name := range e.Secrets {
			undo = append(undo, set(s.approved, approvedKey(e.Policy, name, e.Chip, e.Digest), true))
		}
	}
	return undo
}

// become says what became of a statement. A release is not taken back by what is said later of
// the same statement.
func (s *state) become(statement string, o outcome) (undo func()) {
	if statement == "" {
		return func() {}
	}
	old, had := s.outcomes[statement]
	if had && (old.state == "received" || old.state == "released" && o.state != "received") {
		return func() {}
	}
	undo = set(s.outcomes, statement, o)
	if had {
		return undo
	}
	recent := s.recent
	s.recent = append(s.recent, statement)
	var gone string
	var lost outcome
	if len(s.recent) > maxStatements {
		gone, lost = s.recent[0], s.outcomes[s.recent[0]]
		delete(s.outcomes, gone)
		s.recent = s.recent[1:]
	}
	back := undo
	return func() {
		back()
		s.recent = recent
		if gone != "" {
			s.outcomes[gone] = lost
		}
	}
}
