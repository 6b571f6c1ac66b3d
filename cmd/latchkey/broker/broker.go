package broker

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence"
	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
	"github.com/vmlatch/vmlatch/firmware/tdx/quote"
	tpmquote "github.com/vmlatch/vmlatch/firmware/tpm/quote"
	"github.com/vmlatch/vmlatch/firmware/tpm/seal"
)

// Config is what a broker runs with.
type Config struct {
	Keys []ed25519.PrivateKey // the first is the one that new guests pin
	// HostTrusted is whether the keys are for guests that trust their hosts, and for no others.
	HostTrusted bool
	Rules       *Rules
	State       string // its directory
	AcceptLoss  bool   // of the audit
	DryRun      bool   // judge, and give nothing
	Now         func() time.Time
	Log         func(format string, args ...any) // a line for the owner; nil for none
}

// Broker serves guests. Its methods may be called by several goroutines.
type Broker struct {
	keys    map[exchange.Key]*exchange.Broker
	first   *exchange.Broker
	rules   atomic.Pointer[Rules]
	store   *store
	waiting *waiting
	now     func() time.Time
	log     func(format string, args ...any)
	dry     bool
	trusts  bool          // its keys are for guests that trust their hosts
	judging chan struct{} // as many as may be judged at once

	// Only decisions touch these.
	nonces  map[[32]byte]time.Time // that were used
	denials map[string][]time.Time // by policy and chip: lines of the audit that said no

	tokens tokens
	noise  noise
}

// verifications is how many requests are judged at once, and judgeWait how long others wait.
const (
	verifications = 4
	judgeWait     = 10 * time.Second
	maxNonces     = 4096
)

// New opens the state and makes a broker.
func New(c Config) (*Broker, error) {
	if len(c.Keys) == 0 || len(c.Keys) > 2 {
		return nil, fmt.Errorf("%w: %d keys, must be one or two", ErrConfig, len(c.Keys))
	}
	b := &Broker{
		keys: map[exchange.Key]*exchange.Broker{}, waiting: &waiting{},
		log: c.Log, dry: c.DryRun, trusts: c.HostTrusted,
		judging: make(chan struct{}, verifications), nonces: map[[32]byte]time.Time{}, now: c.Now,
		denials: map[string][]time.Time{},
	}
	if b.now == nil {
		b.now = func() time.Time { return time.Now().Round(0) } // a wall clock can be turned back
	}
	if b.log == nil {
		b.log = func(string, ...any) {}
	}
	if err := b.tokens.init(); err != nil {
		return nil, err
	}
	for _, k := range c.Keys {
		x, err := exchange.NewBroker(k, rand.Reader)
		if err != nil {
			return nil, err
		}
		if b.keys[x.Key] != nil {
			return nil, fmt.Errorf("%w: one key is given twice", ErrConfig)
		}
		b.keys[x.Key] = x
		if b.first == nil {
			b.first = x
		}
	}
	var err error
	if b.store, err = openStore(c.State, c.AcceptLoss, b.now); err != nil {
		return nil, err
	}
	for _, n := range b.store.notes {
		b.log("%s", n)
	}
	if err := b.Reload(c.Rules); err != nil {
		return nil, errors.Join(err, b.store.close())
	}
	return b, nil
}

// Reload judges by other rules from now on. A bundle with older lists than one that was loaded
// before is refused: whoever could put it there could hide a revocation.
func (b *Broker) Reload(r *Rules) error {
	switch trusting := r.hostTrusted(); {
	case trusting && !b.trusts:
		return fmt.Errorf("%w: policies with [vtpm] need a key of their own: latchkey broker init --host-trusted DIR",
			ErrConfig)
	case !trusting && b.trusts:
		return fmt.Errorf(
			"%w: this key is for guests that trust their hosts: what it signs, a host can have",
			ErrConfig,
		)
	}
	var behind error
	err := b.store.do(func(t *tx) {
		marks := map[string]uint64{}
		if behind = t.kind(r); behind != nil {
			return
		}
		if r.hostTrusted() && t.marks[hostTrusted] == 0 {
			marks[hostTrusted] = 1
		}
		for what, n := range r.marks {
			if was := t.marks[what]; n < was {
				behind = fmt.Errorf(
					"%w: the bundle has gone back: %s is number %d, and was %d",
					ErrConfig,
					what,
					n,
					was,
				)
				return
			} else if n > was {
				marks[what] = n
			}
		}
		if len(marks) > 0 {
			t.add(&Event{Event: evLoad, Marks: marks})
		}
	})
	if err = cmp.Or(behind, err); err != nil {
		return err
	}
	b.rules.Store(r)
	return nil
}

// Key is the key that new guests pin.
func (b *Broker) Key() exchange.Key { return b.first.Key }

// Close ends the broker. What it answered is durable.
func (b *Broker) Close() error {
	b.noise.flush(b)
	return b.store.close()
}

// Answer answers a line; nil if there is nothing to say.
func (b *Broker) Answer(ctx context.Context, line []byte) []byte {
	switch exchange.Want(line) {
	case exchange.WantChallenge:
		ask, err := exchange.ReadAsk(line)
		if err != nil {
			return b.drop(reasonMalformed)
		}
		k := b.keys[ask.Broker]
		if k == nil { // whoever pins another key would believe nothing that this one signs
			return b.drop("other-broker")
		}
		answer, err := k.Challenge(ask, b.now())
		if err != nil {
			return b.drop(reasonUnavailable)
		}
		return answer
	case exchange.WantRelease:
		return b.release(ctx, line)
	case exchange.WantReceipt:
		b.receipt(line)
		return nil
	case exchange.WantStatus:
		return b.status(line)
	case exchange.WantSession:
		return b.session(ctx, line)
	case exchange.WantPacket:
		return b.packet(ctx, line)
	}
	return b.drop(reasonMalformed)
}

// drop counts what is not answered.
func (b *Broker) drop(reason string) []byte {
	b.noise.count(b, reason)
	return nil
}

// release judges a request and answers it.
func (b *Broker) release(ctx context.Context, line []byte) []byte {
	key, err := exchange.ClaimedKey(line)
	k := b.keys[key]
	if err != nil || k == nil {
		k = b.first // its denial says why, if the statement can be named
	}
	s, hash, err := k.ReadRequest(line, b.now())
	if err != nil {
		return b.unverified(k, hash, reasonOf(err))
	}
	x := b.rules.Load().rules[s.Statement.Name]
	if x == nil || x.demands[s.Statement.Technology] == nil {
		return b.unverified(k, hash, reasonNoPolicy, s.Statement.Name)
	}
	for _, name := range s.Statement.Secrets {
		if x.release[name] == nil {
			return b.unverified(k, hash, reasonNoSecret)
		}
	}
	if s.Statement.CanSeal(x.kems...) != nil {
		return b.unverified(k, hash, reasonKEM)
	}
	if !b.clockIsRight() {
		return b.unverified(k, hash, reasonClock)
	}
	v, a, reason := b.judge(ctx, x, s)
	if reason != "" {
		detail := ""
		if v != nil && v.Refusal != nil {
			detail = v.Refusal.Error()
		}
		return b.unverified(k, hash, reason, s.Statement.Name, s.Statement.Technology, detail)
	}
	if !v.Accepted {
		return b.denyVerified(
			k,
			s,
			a,
			verdictReason(v),
			strings.Join(append([]string{v.Refusal.Error()}, v.Explained...), "; "),
		)
	}
	return b.give(ctx, k, s, a)
}

// unverified answers what has proven nothing. Nothing is remembered of it but a count.
func (b *Broker) unverified(k *exchange.Broker, hash exchange.SHA512, reason string, detail ...string) []byte {
	b.noise.count(b, reason, detail...)
	if hash == (exchange.SHA512{}) {
		return nil
	}
	b.noise.note(hash, outcome{k.Key.String(), string(exchange.Denied), reason, ""})
	return k.Deny(hash, reason, retryable[reason])
}

// clockIsRight reports whether the clock is not before the last line of the audit: dates could not
// be judged by it.
func (b *Broker) clockIsRight() (ok bool) {
	// The time is taken where lines are written: one taken before could be older than a line that
	// came in between.
	b.store.view(func(s *state) { ok = !b.now().Before(s.head.At) })
	return ok
}

// enter waits until there is a place for work that takes long.
func (b *Broker) enter(ctx context.Context) (leave func(), ok bool) {
	ctx, stop := context.WithTimeout(ctx, judgeWait)
	defer stop()
	select {
	case b.judging <- struct{}{}:
		return func() { <-b.judging }, true
	case <-ctx.Done():
		return nil, false
	}
}

// judge verifies evidence and holds it against the policy. The reason is "" if it is genuine.
func (b *Broker) judge(
	ctx context.Context,
	x *rule,
	s *exchange.Shown,
) (v *evidence.Verdict, a *asked, reason string) {
	leave, ok := b.enter(ctx)
	if !ok {
		return nil, nil, reasonBusy
	}
	defer leave()
	e, err := evidenceOf(s)
	if err != nil {
		return nil, nil, reasonMalformed
	}
	// A genuine report that was made for something else proves nothing about who asks: others
	// may have seen it.
	if !e.For(s.ReportData) {
		return nil, nil, string(refusal.ReportData)
	}
	d := *x.demands[s.Statement.Technology]
	if d.Report != nil {
		p := *d.Report
		p.ReportData = s.ReportData[:]
		d.Report = &p
	}
	if d.Quote != nil {
		p := *d.Quote
		p.ReportData = s.ReportData[:]
		d.Quote = &p
	}
	if d.TPM != nil {
		r, p := *d.TPM, *d.TPM.Policy
		p.Challenge, r.Policy = s.ReportData[:], &p
		d.TPM = &r
	}
	sources := &evidence.Sources{Roots: x.roots, Bundle: b.rules.Load().bundle, Log: s.Log}
	v = evidence.Judge(e, sources, &d, b.now())
	if !v.Genuine {
		return v, nil, string(v.Refusal.Reason)
	}
	h := s.KeyHash()
	a = &asked{
		broker: s.Statement.Broker.String(), rule: x, technology: e.Technology, key: h.String(), chip: v.Chip,
		statement: s.Hash.String(), secrets: s.Statement.Secrets, emulated: v.Emulated, notProven: v.NotProven,
		trust: v.Trust,
	}
	// Neither a trust domain nor a boot with a TPM has a number of its own, so each key is a
	// launch. That there is one is what RTMR3, or PCR 15, tells: the agent closes the launch before
	// it hands a secret on.
	switch {
	case e.Report != nil:
		a.launch, a.digest = "snp:"+hex.EncodeToString(e.Report.ReportID[:]), hex.EncodeToString(e.Digest())
	case e.TPM != nil:
		a.launch, a.digest = "vtpm:"+a.key, hex.EncodeToString(v.Booted())
		if !v.Open() {
			a.closed = "PCR " + strconv.Itoa(seal.ClosingPCR)
		}
	default:
		a.launch, a.digest = "tdx:"+a.key, hex.EncodeToString(e.Digest())
		if e.Quote.Body.RTMR[3] != [48]byte{} {
			a.closed = "RTMR3"
		}
	}
	return v, a, ""
}

// evidenceOf reads evidence as it is, and in no wrapping.
func evidenceOf(s *exchange.Shown) (e *evidence.Evidence, err error) {
	e = &evidence.Evidence{Technology: s.Statement.Technology}
	switch e.Technology {
	case evidence.TDX:
		e.Quote, err = quote.Parse(s.Evidence)
		return e, err
	case evidence.VTPM:
		e.TPM, err = tpmquote.ParseQuote(s.Evidence)
		return e, err
	}
	if e.Report, err = report.Parse(s.Evidence); err == nil && len(s.Table) > 0 {
		e.Table, err = report.ParseTable(s.Table)
	}
	return e, err
}

// useNonce marks a nonce as used; "" if it was not.
func (b *Broker) useNonce(nonce [32]byte, now time.Time) (reason string) {
	for n, until := range b.nonces {
		if now.After(until) {
			delete(b.nonces, n)
		}
	}
	switch _, used := b.nonces[nonce]; {
	case used:
		return reasonNonce
	case len(b.nonces) >= maxNonces:
		return reasonBusy
	}
	b.nonces[nonce] = now.Add(exchange.Lifetime)
	return ""
}

// denyVerified refuses genuine evidence, and remembers that.
func (b *Broker) denyVerified(k *exchange.Broker, s *exchange.Shown, a *asked, reason, detail string) []byte {
	err := b.store.do(func(t *tx) {
		// A denial does not use a nonce up: it would be denied again, and strangers could fill the
		// list of those that were used.
		if _, used := b.nonces[s.Nonce]; used {
			reason, detail = reasonNonce, ""
			return
		}
		switch {
		case b.dry:
			return
		case probes[reason] && t.cooling(a, t.now): // it would prolong itself
			reason, detail = reasonCoolDown, ""
			return
		}
		if !b.note(t, a, reason, detail) {
			reason, detail = reasonCoolDown, ""
		}
	})
	if err != nil {
		reason, detail = reasonUnavailable, err.Error()
	}
	b.log("denied %s to %s on %s: %s", list(a.secrets), a.rule.Name, a.where(), cmp.Or(detail, reason))
	return k.Deny(s.Hash, reason, retryable[reason])
}

// maxNoted bounds the lines that say no to a chip within coolDown: who asks in a loop does not fill
// the disk.
const maxNoted = 64

// note adds a denial to the audit. Where there were too many, it reports false: cool-down is the
// answer then, which is not noted.
func (b *Broker) note(t *tx, a *asked, reason, detail string) bool {
	who := a.rule.Name + " " + a.chip
	if recentOf(b.denials[who], t.now, coolDown) >= maxNoted {
		return false
	}
	if len(b.denials) >= maxNoise {
		clear(b.denials)
	}
	b.denials[who] = trim(b.denials[who], t.now, coolDown)
	e := a.event(evDeny)
	e.Launch, e.Key, e.Reason, e.Detail = "", "", reason, detail
	t.add(e)
	return true
}

// where is the technology and chip, for people.
func (a *asked) where() string {
	chip := "a chip without a name"
	if a.chip != "" {
		chip = "chip " + a.chip[:min(len(a.chip), 16)]
	}
	switch {
	case a.emulated:
		return "emulated " + a.technology + ", " + chip
	case a.trust != "":
		return a.technology + " (trust: " + a.trust + "), " + chip
	}
	return a.technology + ", " + chip
}
