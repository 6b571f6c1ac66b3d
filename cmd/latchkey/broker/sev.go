package broker

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence/bundle"
	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/session"
	"github.com/vmlatch/vmlatch/firmware/sev/table"
)

// tokens carry sessions' keys to the host and back, sealed with a key of this process, so that
// nothing is kept for whoever asks.
type tokens struct {
	aead cipher.AEAD

	mu    sync.Mutex
	given map[string]packetGiven // by launch
}

// packetGiven is a packet that was given: the same question gets the same bytes.
type packetGiven struct {
	asked exchange.SHA512
	line  []byte
	at    time.Time
}

// token is what a token holds.
type token struct {
	Name       string     `json:"name"`
	Technology string     `json:"technology"`
	Policy     sev.Policy `json:"policy"`
	Chip       string     `json:"chip"`
	Emulated   bool       `json:"emulated"`
	At         time.Time  `json:"at"`
	TEK        []byte     `json:"tek"`
	TIK        []byte     `json:"tik"`
}

func (t *tokens) init() error {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails (crypto/rand)
	block, err := aes.NewCipher(key)
	if err != nil {
		return err
	}
	t.given = map[string]packetGiven{}
	t.aead, err = cipher.NewGCMWithRandomNonce(block)
	return err
}

const tokenPurpose = "vmlatch session v1"

func (t *tokens) seal(x *token) ([]byte, error) {
	b, err := json.Marshal(x)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	return t.aead.Seal(nil, nil, b, []byte(tokenPurpose)), nil
}

func (t *tokens) open(b []byte, now time.Time) (*token, error) {
	plain, err := t.aead.Open(nil, nil, b, []byte(tokenPurpose))
	if err != nil {
		return nil, errors.New("the token is not of this broker, or of before it started")
	}
	defer clear(plain)
	x := &token{}
	if err := json.Unmarshal(plain, x); err != nil {
		return nil, err
	}
	if now.Sub(x.At) > exchange.TokenLifetime {
		return nil, fmt.Errorf("the session is older than %v", exchange.TokenLifetime)
	}
	return x, nil
}

// again is the packet that a launch got for the same question.
func (t *tokens) again(launch string, asked exchange.SHA512, now time.Time) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.given, func(_ string, g packetGiven) bool { return now.Sub(g.at) > exchange.TokenLifetime })
	if g, ok := t.given[launch]; ok && g.asked == asked {
		return g.line
	}
	return nil
}

func (t *tokens) gave(launch string, g packetGiven) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.given[launch] = g
}

// session answers a host that begins a launch of SEV or SEV-ES.
func (b *Broker) session(ctx context.Context, line []byte) []byte {
	ask, err := exchange.ReadAskSession(line)
	if err != nil {
		return b.drop(reasonMalformed)
	}
	k := b.keys[ask.Broker]
	if k == nil {
		return b.drop("other-broker")
	}
	leave, ok := b.enter(ctx)
	if !ok {
		return b.unverified(k, exchange.LineHash(line), reasonBusy)
	}
	defer leave()
	answer, reason, detail := b.newSession(k, ask)
	if reason != "" {
		return b.unverified(k, exchange.LineHash(line), reason, "no session", ask.Name, ask.Technology, detail)
	}
	return answer
}

func (b *Broker) newSession(k *exchange.Broker, ask *exchange.AskSession) (line []byte, reason, detail string) {
	rules := b.rules.Load()
	x := rules.rules[ask.Name]
	if x == nil || x.Table(ask.Technology) == nil {
		return nil, reasonNoPolicy, ""
	}
	if !b.clockIsRight() {
		return nil, reasonClock, ""
	}
	chain, err := sev.ParseChain(ask.PDH, ask.Chain)
	if err != nil {
		return nil, reasonMalformed, err.Error()
	}
	chip, err := cekDigest(chain)
	if err != nil {
		return nil, reasonMalformed, err.Error()
	}
	if chips, anyChip, err := x.CEKs(ask.Technology); err != nil || !anyChip &&
		!slices.ContainsFunc(chips, func(c []byte) bool { return hex.EncodeToString(c) == chip }) {
		return nil, reasonChip, "the chip, " + chip + ", is not one of yours"
	}
	chain = withCEK(chain, rules.bundle)
	switch _, err := chain.Verify(x.roots.SEV); {
	case errors.Is(err, sev.ErrUnsignedCEK):
		return nil, string(refusal.EKMissing), err.Error() + ": add AMD's to the bundle (latchkey bundle add)"
	case err != nil:
		return nil, string(refusal.Chain), err.Error()
	}
	guest := x.Table(ask.Technology).GuestPolicy(ask.Technology == exchange.SEVES)
	major, minor := chain.PDH.API()
	if !guest.Admits(sev.Build{Major: major, Minor: minor}) {
		return nil, reasonPolicy, fmt.Sprintf("the platform's firmware is of API %d.%d", major, minor)
	}
	made, err := session.New(rand.Reader, chain.PDH, guest)
	if err != nil {
		return nil, reasonUnavailable, err.Error()
	}
	defer made.Keys.Wipe()
	sealed, err := b.tokens.seal(&token{
		Name: x.Name, Technology: ask.Technology, Policy: guest, Chip: chip, Emulated: x.Emulated != nil,
		At: b.now().UTC(), TEK: made.Keys.TEK[:], TIK: made.Keys.TIK[:],
	})
	if err != nil {
		return nil, reasonUnavailable, err.Error()
	}
	return k.Session(ask, uint32(guest), made.OwnerCert.Bytes(), made.Blob[:], sealed), "", ""
}

// cekDigest identifies a chip: SHA-256 of its endorsement key as an uncompressed point.
func cekDigest(c *sev.Chain) (string, error) {
	key, err := c.CEK.Key.Bytes()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:]), nil
}

// withCEK takes the chip's signed certificate from a bundle, if it is there.
func withCEK(c *sev.Chain, b *bundle.Bundle) *sev.Chain {
	for _, part := range b.Parts {
		if part.Kind != bundle.CEK {
			continue
		}
		if with, err := c.WithCEK(part.Data); err == nil {
			return with
		}
	}
	return c
}

// packet answers a host that shows the measurement of its launch.
func (b *Broker) packet(ctx context.Context, line []byte) []byte {
	ask, err := exchange.ReadAskPacket(line)
	if err != nil {
		return b.drop(reasonMalformed)
	}
	k := b.keys[ask.Broker]
	if k == nil {
		return b.drop("other-broker")
	}
	hash := exchange.LineHash(line)
	a, keys, m, reason, detail := b.measured(ask)
	if reason != "" {
		return b.unverified(k, hash, reason, "no packet", detail)
	}
	defer keys.Wipe()
	a.broker, a.statement = k.Key.String(), hash.String()
	if g := b.tokens.again(a.launch, hash, b.now()); g != nil {
		return g
	}
	var header, secret []byte
	if b.likely(a) {
		leave, ok := b.enter(ctx)
		if !ok {
			return b.unverified(k, hash, reasonBusy)
		}
		header, secret, err = b.pack(ctx, k, a, keys, m)
		leave()
		if err != nil {
			return b.failed(k, hash, a, err)
		}
	}
	var d decision
	if err := b.store.do(func(t *tx) { d = b.settle(t, a, header != nil, "") }); err != nil {
		b.log("%s for %s: cannot be recorded: %v", list(a.secrets), a.rule.Name, err)
		return k.Deny(hash, reasonUnavailable, true)
	}
	b.said(a, d)
	switch {
	case d.reason != "":
		return k.Deny(hash, d.reason, retryable[d.reason])
	case d.pending != 0:
		return k.Pend(hash, d.pending, pollPending)
	}
	answer := k.Packet(line, header, secret)
	b.tokens.gave(a.launch, packetGiven{hash, answer, b.now()})
	return answer
}

// failed answers a launch whose secrets cannot be had, and notes it.
func (b *Broker) failed(k *exchange.Broker, hash exchange.SHA512, a *asked, why error) []byte {
	reason := reasonUnavailable
	if errors.Is(why, errRoom) {
		reason = reasonRoom
	}
	err := b.store.do(func(t *tx) {
		if !b.note(t, a, reason, why.Error()) {
			reason = reasonCoolDown
		}
	})
	b.log("no packet for %s: %v", a.rule.Name, errors.Join(why, err))
	return k.Deny(hash, reason, retryable[reason])
}

// errRoom is wrapped by errors about secrets that do not fit.
var errRoom = errors.New("the firmware's area for secrets is too small")

// measured judges a measurement: what counts is what its MAC covers.
func (b *Broker) measured(ask *exchange.AskPacket) (
	a *asked, keys *session.Keys, m sev.Measurement, reason, detail string,
) {
	if !b.clockIsRight() {
		return nil, nil, m, reasonClock, ""
	}
	t, err := b.tokens.open(ask.Token, b.now())
	if err != nil {
		return nil, nil, m, reasonToken, err.Error()
	}
	defer func() {
		clear(t.TEK)
		clear(t.TIK)
		if a == nil && keys != nil {
			keys.Wipe()
			keys = nil
		}
	}()
	x := b.rules.Load().rules[t.Name]
	if x == nil || x.Table(t.Technology) == nil || (x.Emulated != nil) != t.Emulated {
		return nil, nil, m, reasonNoPolicy, ""
	}
	if m, err = sev.ParseMeasurement(ask.Measurement); err != nil {
		return nil, nil, m, reasonMalformed, err.Error()
	}
	keys = &session.Keys{TEK: [16]byte(t.TEK), TIK: [16]byte(t.TIK)}
	build := sev.Build{Major: ask.Major, Minor: ask.Minor, Build: ask.Build}
	digest := x.digests[t.Technology]
	switch {
	case !keys.Verifies(m, build, t.Policy, [32]byte(digest)):
		return nil, nil, m, reasonMeasurement, fmt.Sprintf(
			"%s (%s): the measurement is not that of the policy's guest", t.Name, t.Technology)
	case !t.Policy.Admits(build):
		return nil, nil, m, reasonPolicy, fmt.Sprintf("the platform's firmware is %v", build)
	case len(x.release) == 0:
		return nil, nil, m, reasonNoSecret, ""
	}
	launch, key := sha256.Sum256(ask.Token), sha256.Sum256(ask.Measurement)
	a = &asked{
		rule: x, technology: t.Technology, launch: "sev:" + hex.EncodeToString(launch[:]),
		key: hex.EncodeToString(key[:]), chip: t.Chip, digest: hex.EncodeToString(digest),
		secrets: slices.Sorted(
			maps.Keys(x.release),
		), emulated: t.Emulated, notProven: notProven(t.Technology, t.Emulated),
	}
	return a, keys, m, "", ""
}

// notProven is what a measurement leaves open.
func notProven(technology string, emulated bool) (list []string) {
	if emulated {
		list = append(list, "anything about protection: the chain ends in a test root, so this is emulated")
	}
	if technology == exchange.SEV {
		list = append(list, "that registers are protected: SEV does not")
	}
	return append(list, "that memory is protected against changes: SEV and SEV-ES do not",
		"what is on disks, and who is at the other end of networks")
}

// pack encrypts the secrets for one launch, with the envelope that vouches for them.
func (b *Broker) pack(
	ctx context.Context,
	k *exchange.Broker,
	a *asked,
	keys *session.Keys,
	m sev.Measurement,
) (header, secret []byte, err error) {
	values, err := a.rule.fetch(ctx, a.secrets)
	if err != nil {
		return nil, nil, err
	}
	defer exchange.Wipe(values)
	for name, v := range values {
		if v.LUKSHeader != "" {
			values[name+exchange.HeaderSuffix] = exchange.Secret{Value: []byte(v.LUKSHeader)}
		}
	}
	var entries []table.Entry
	for _, name := range slices.Sorted(maps.Keys(values)) {
		entries = append(entries, table.Entry{GUID: table.Named(name), Data: values[name].Value})
	}
	entries = append(entries, table.Entry{GUID: table.GUIDInjected, Data: k.Inject(a.rule.Name, values)})
	table, err := table.Pack(entries)
	if err != nil {
		return nil, nil, err
	}
	defer clear(table)
	if len(table) > int(a.rule.room) {
		return nil, nil, fmt.Errorf("%w: it has %d bytes, and these take %d", errRoom, a.rule.room, len(table))
	}
	var iv [16]byte
	_, _ = rand.Read(iv[:]) // never fails (crypto/rand)
	p, err := keys.Seal(table, iv, m)
	return p.Header[:], p.Data, err
}
