package broker

import (
	"slices"
	"strings"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence/policy"
)

// asked is a request whose evidence was verified and accepted by the policy.
type asked struct {
	broker     string // key that the guest pins
	rule       *rule
	technology string
	launch     string // what names the launch
	key        string // SHA-256 of the key that asks
	chip       string // "" for one without a name
	digest     string
	statement  string
	secrets    []string
	emulated   bool
	trust      string // "host", or ""
	closed     string // the register by which its agent has closed the launch; "" if it has not
	notProven  []string
}

func (a *asked) event(kind string) *Event {
	return &Event{
		Event: kind, Broker: a.broker, Policy: a.rule.Name, Technology: a.technology, Emulated: a.emulated,
		Trust: a.trust, Secrets: a.secrets,
		Launch: a.launch, Key: a.key, Chip: a.chip, Digest: a.digest, Statement: a.statement,
	}
}

// decision is what a request gets.
type decision struct {
	reason  string // of a denial; "" for none
	pending uint64 // the number of the request that a person decides on; 0 for none
	again   bool   // the launch got all of it before
	number  uint64 // of the approval that it uses up
}

// check decides by what was given before, without changing anything but who is waiting. The order
// is fixed.
func (b *Broker) check(s *state, a *asked, now time.Time) decision {
	l := s.launches[a.launch]
	if l != nil && l.key != a.key {
		return decision{reason: reasonLaunchKey}
	}
	var fresh []*policy.Release
	for _, name := range a.secrets {
		if l == nil || !l.given[secretKey(a.rule.Name, name)] {
			fresh = append(fresh, a.rule.release[name])
		}
	}
	person := false
	for _, r := range fresh {
		key := secretKey(a.rule.Name, r.Secret)
		if first := s.served[key]; r.Mode == policy.Once && first != "" && first != a.launch {
			return decision{reason: reasonOnce}
		}
		if n, per := r.Limit(); n > 0 && recentOf(s.times[key], now, per) >= n {
			return decision{reason: reasonMax}
		}
		known := a.chip != "" && s.approved[approvedKey(a.rule.Name, r.Secret, a.chip, a.digest)]
		person = person || r.Mode == policy.Ask || r.Mode == policy.FirstAsk && !known
	}
	d := decision{again: len(fresh) == 0}
	if !person {
		return d
	}
	w := b.waiting.find(a, now)
	switch {
	case w == nil:
		d.pending = s.request + 1
	case w.answer == refused:
		d.reason = reasonPerson
	case w.answer == approved:
		d.number = w.Number
	default:
		d.pending = w.Number
	}
	return d
}

// cooling reports whether a chip's evidence was refused too often. Evidence that is accepted is not
// a probe: another guest of the chip cannot lock it out.
func (s *state) cooling(a *asked, now time.Time) bool {
	return recentOf(s.denied[a.rule.Name+" "+a.chip], now, coolDown) >= maxDenials
}

func recentOf(list []time.Time, now time.Time, within time.Duration) (n int) {
	for _, t := range list {
		if now.Sub(t) < within {
			n++
		}
	}
	return n
}

// waiting are requests that a person decides on. Only decisions touch them, and looks under the
// store's lock.
type waiting struct{ list []*Request }

// answer is a person's.
type answer int

const (
	none answer = iota
	approved
	refused
)

// Request waits for a person.
type Request struct {
	Number     uint64    `json:"request"`
	Policy     string    `json:"policy"`
	Technology string    `json:"technology"`
	Emulated   bool      `json:"emulated"`
	Trust      string    `json:"trust,omitempty"` // "host": the host could have made the evidence up
	Secrets    []string  `json:"secrets"`
	Chip       string    `json:"chip"`
	Digest     string    `json:"digest"`
	Launch     string    `json:"launch"`
	Key        string    `json:"key"`
	Since      time.Time `json:"since"`
	Seen       time.Time `json:"last-asked"`
	NotProven  []string  `json:"not-proven"`
	Changed    []string  `json:"changed"` // against what was approved or given last
	Answer     string    `json:"answer,omitempty"`

	answer answer
	at     time.Time // of the answer
}

// Bounds of what waits.
const (
	maxWaiting = 32
	maxOfChip  = 4                // of one policy and chip
	patience   = 10 * time.Minute // of a request that is not asked again, and of an approval
)

// is reports whether a request is the one that was asked: an approval is for one launch, key,
// digest, chip and set of secrets.
func (r *Request) is(a *asked) bool {
	return r.Policy == a.rule.Name && r.Launch == a.launch && r.Key == a.key && r.Digest == a.digest &&
		r.Chip == a.chip && slices.Equal(r.Secrets, a.secrets)
}

func (w *waiting) expire(now time.Time) {
	w.list = slices.DeleteFunc(w.list, func(r *Request) bool {
		if r.answer != none {
			return now.Sub(r.at) >= patience
		}
		return now.Sub(r.Seen) >= patience
	})
}

func (w *waiting) find(a *asked, now time.Time) *Request {
	w.expire(now)
	for _, r := range w.list {
		if r.is(a) {
			return r
		}
	}
	return nil
}

// add lets a request wait, in the place of those of the policy and chip that are not asked any
// more: a guest that was started again needs an approval of its own. It reports whether there was
// room.
func (w *waiting) add(r *Request) bool {
	same := func(o *Request) bool { return o.Policy == r.Policy && o.Chip == r.Chip }
	w.list = slices.DeleteFunc(w.list, func(o *Request) bool {
		return same(o) && o.answer == none && r.Seen.Sub(o.Seen) > 3*pollPending
	})
	n, all := 0, 0
	for _, o := range w.list {
		if o.answer == refused { // is only remembered
			continue
		}
		if all++; same(o) {
			n++
		}
	}
	if n >= maxOfChip || all >= maxWaiting {
		return false
	}
	if len(w.list) >= 4*maxWaiting { // the oldest that was refused has its answer by now
		i := slices.IndexFunc(w.list, func(o *Request) bool { return o.answer == refused })
		w.list = slices.Delete(w.list, i, i+1)
	}
	w.list = append(w.list, r)
	return true
}

// restore remembers what waits, to take a change back.
func (w *waiting) restore() (undo func()) {
	list := slices.Clone(w.list)
	return func() { w.list = list }
}

func (w *waiting) remove(number uint64) {
	w.list = slices.DeleteFunc(w.list, func(r *Request) bool { return r.Number == number })
}

func (w *waiting) numbered(n uint64) *Request {
	for _, r := range w.list {
		if r.Number == n {
			return r
		}
	}
	return nil
}

// changes says what of a request was not there before.
func (s *state) changes(a *asked) (list []string) {
	chip, digest := false, false
	for key := range s.known {
		f := strings.Fields(key)
		if len(f) == 3 && f[0] == a.rule.Name {
			chip, digest = chip || f[1] == a.chip, digest || f[2] == a.digest
		}
	}
	if a.chip == "" {
		list = append(list, "the chip has no name")
	} else if !chip {
		list = append(list, "the chip is new")
	}
	if !digest {
		list = append(list, "the digest is new")
	}
	if chip && digest {
		list = append(list, "chip and digest were given secrets before")
	}
	return list
}
