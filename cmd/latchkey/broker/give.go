package broker

import (
	"context"
	"crypto/subtle"
	"strings"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
)

func list(names []string) string { return strings.Join(names, ", ") }

// pollPending is how long a guest waits before it asks again.
const pollPending = 5 * time.Second

// give decides on a request that the policy accepts, and answers it.
func (b *Broker) give(ctx context.Context, k *exchange.Broker, s *exchange.Shown, a *asked) []byte {
	if a.closed != "" {
		return b.denyVerified(k, s, a, reasonClosed, a.closed+" is not zero: the launch has been served and closed")
	}
	var line []byte
	var receipt exchange.SHA256
	if b.likely(a) {
		values, err := a.rule.fetch(ctx, a.secrets)
		if err == nil {
			line, receipt, err = k.Release(s, values)
		}
		exchange.Wipe(values)
		if err != nil {
			return b.denyVerified(k, s, a, reasonUnavailable, err.Error())
		}
	}
	d, err := b.decide(s.Nonce, a, line != nil, receipt.String())
	if err != nil {
		b.log("%s for %s: cannot be recorded: %v", list(a.secrets), a.rule.Name, err)
		return k.Deny(s.Hash, reasonUnavailable, true)
	}
	b.said(a, d)
	switch {
	case d.reason != "":
		return k.Deny(s.Hash, d.reason, retryable[d.reason])
	case d.pending != 0:
		return k.Pend(s.Hash, d.pending, pollPending)
	}
	return line
}

// said logs what a request got, or would have got.
func (b *Broker) said(a *asked, d decision) {
	what, why := "released", ""
	switch {
	case d.reason == reasonDryRun && d.pending != 0:
		what, why = "would wait for a person to release", " ("+reasonDryRun+")"
	case d.reason == reasonDryRun:
		what, why = "would release", " ("+reasonDryRun+")"
	case d.reason != "":
		what, why = "denied", ": "+d.reason
	case d.pending != 0:
		return // was said when it began to wait
	}
	b.log("%s %s to %s on %s%s", what, list(a.secrets), a.rule.Name, a.where(), why)
}

// likely reports whether a request would get its secrets now, so that they are fetched before the
// decision is made: a command may take seconds, and decisions wait for each other.
func (b *Broker) likely(a *asked) bool {
	var d decision
	b.store.view(func(s *state) { d = b.check(s, a, b.now()) })
	return d.reason == "" && d.pending == 0 && !b.dry
}

// decide makes a decision and records it. It returns once it is durable.
func (b *Broker) decide(nonce [32]byte, a *asked, ready bool, receipt string) (d decision, err error) {
	err = b.store.do(func(t *tx) {
		if d.reason = b.useNonce(nonce, t.now); d.reason != "" {
			return
		}
		d = b.settle(t, a, ready, receipt)
	})
	return d, err
}

// settle decides and notes the event.
func (b *Broker) settle(t *tx, a *asked, ready bool, receipt string) (d decision) {
	d = b.check(t.state, a, t.now)
	switch {
	case b.dry:
		if d.reason == "" {
			d.reason = reasonDryRun
		}
	case d.reason != "":
		if !b.note(t, a, d.reason, "") {
			d.reason = reasonCoolDown
		}
	case d.pending != 0:
		b.wait(t, a, &d)
	case !ready: // it changed between the look and the decision
		d.reason = reasonBusy
	default:
		e := a.event(evRelease)
		e.Again, e.Receipt, e.NotProven, e.Request = d.again, receipt, a.notProven, d.number
		t.add(e)
		if d.number != 0 {
			t.undo = append(t.undo, b.waiting.restore())
			b.waiting.remove(d.number)
		}
	}
	return d
}

// wait lets a request wait for a person.
func (b *Broker) wait(t *tx, a *asked, d *decision) {
	if w := b.waiting.find(a, t.now); w != nil {
		w.Seen = t.now
		return
	}
	w := &Request{
		Number: d.pending, Policy: a.rule.Name, Technology: a.technology, Emulated: a.emulated,
		Trust: a.trust, Secrets: a.secrets,
		Chip: a.chip, Digest: a.digest, Launch: a.launch, Key: a.key, Since: t.now, Seen: t.now,
		NotProven: a.notProven, Changed: t.changes(a),
	}
	back := b.waiting.restore()
	if !b.waiting.add(w) {
		d.pending, d.reason = 0, reasonBusy
		return
	}
	e := a.event(evPending)
	e.Request = w.Number
	t.add(e)
	t.undo = append(t.undo, back)
	b.log("request %d waits for you: %s for %s on %s (latchkey requests)", w.Number, list(a.secrets), a.rule.Name,
		a.where())
}

// receipt notes that a release was opened. It changes what is shown, never what is allowed.
func (b *Broker) receipt(line []byte) {
	hash, mac, err := exchange.ReadReceipt(line)
	if err != nil {
		b.drop(reasonMalformed)
		return
	}
	ok := false
	statement := hash.String()
	matches := func(s *state) bool {
		o := s.outcomes[statement]
		return o.state == string(exchange.Released) &&
			subtle.ConstantTimeCompare([]byte(o.receipt), []byte(mac.String())) == 1
	}
	b.store.view(func(s *state) { ok = matches(s) })
	if !ok {
		b.drop("receipt")
		return
	}
	_ = b.store.do(func(t *tx) {
		if matches(t.state) {
			t.add(
				&Event{
					Event:     evReceipt,
					Broker:    t.outcomes[statement].broker,
					Statement: statement,
					Receipt:   mac.String(),
				},
			)
		}
	})
}

// status says what became of a statement.
func (b *Broker) status(line []byte) []byte {
	hash, err := exchange.ReadAskStatus(line)
	if err != nil {
		return b.drop(reasonMalformed)
	}
	o := outcome{state: string(exchange.Unknown)}
	b.store.view(func(s *state) {
		if x, ok := s.outcomes[hash.String()]; ok {
			o = x
		}
	})
	if o.state == string(exchange.Unknown) {
		if x := b.noise.outcome(hash); x.state != "" && !retryable[x.reason] {
			o = x
		}
	}
	k := b.first
	for _, x := range b.keys {
		if x.Key.String() == o.broker {
			k = x
		}
	}
	return k.Status(hash, exchange.State(o.state), o.reason)
}
