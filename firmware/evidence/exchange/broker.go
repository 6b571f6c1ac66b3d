package exchange

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/vmlatch/vmlatch/firmware/smallfmt"
)

// Errors about requests that do not answer a challenge of this broker. They wrap ErrMessage.
var (
	ErrChallenge = smallfmt.Errorf("%w: the challenge is not of this broker, or of before it started", ErrMessage)
	ErrExpired   = smallfmt.Errorf("%w: the challenge has expired", ErrMessage)
	ErrMismatch  = smallfmt.Errorf("%w: the statement does not answer the challenge", ErrMessage)
)

// Broker is the owner's side of the exchange: it holds one key. It keeps no state; whoever serves
// remembers nonces and launches.
type Broker struct {
	Key      Key
	private  ed25519.PrivateKey
	instance [16]byte
	random   io.Reader
}

// NewBroker draws the instance that binds challenges to this start.
func NewBroker(private ed25519.PrivateKey, random io.Reader) (*Broker, error) {
	if len(private) != ed25519.PrivateKeySize {
		return nil, errors.New("broker key: not a key of Ed25519")
	}
	b := &Broker{private: private, random: random, Key: Key(private.Public().(ed25519.PublicKey))}
	_, err := io.ReadFull(random, b.instance[:])
	return b, err
}

// ReadAsk reads an agent's first message.
func ReadAsk(line []byte) (*Ask, error) {
	a := &Ask{}
	if err := decode(trimLine(line), a); err != nil {
		return nil, err
	}
	if a.Want != WantChallenge || a.Version != Version || !IsName(a.Name) {
		return nil, smallfmt.Errorf("%w: not a question for a challenge", ErrMessage)
	}
	return a, nil
}

// Challenge answers an agent's first message.
func (b *Broker) Challenge(a *Ask, now time.Time) ([]byte, error) {
	c := &Challenge{
		Version: Version, Broker: b.Key, Instance: b.instance, Hello: a.Hello,
		Expires: now.UTC().Truncate(time.Second).Add(Lifetime).Format(time.RFC3339),
	}
	if _, err := io.ReadFull(b.random, c.Nonce[:]); err != nil {
		return nil, err
	}
	return b.line(kindChallenge, c), nil
}

func (b *Broker) line(k kind, payload message) []byte {
	return append(encode(sign(b.private, k, payload)), '\n')
}

// Shown is a request whose form is right and whose challenge is this broker's. Its evidence is not
// judged yet.
type Shown struct {
	*Request
	Statement  *Statement
	Hash       SHA512 // names the statement
	Nonce      [32]byte
	ReportData [64]byte // what the evidence must carry
}

// KeyHash is SHA-256 of the agent's key: a launch is served to one.
func (s *Shown) KeyHash() SHA256 { return sha256.Sum256(s.Statement.Key) }

// ReadRequest reads a request up to the judgement of its evidence: encoding; signature, instance
// and time of the challenge; what the statement says of it. The hash, if not zero, names the
// statement for a denial, also with an error.
func (b *Broker) ReadRequest(line []byte, now time.Time) (*Shown, SHA512, error) {
	s := &Shown{Request: &Request{}}
	r := s.Request
	if err := decode(trimLine(line), r); err != nil {
		return nil, SHA512{}, err
	}
	if r.Want != WantRelease || r.Version != Version || len(r.Evidence) == 0 || len(r.Log) > MaxLog {
		return nil, SHA512{}, smallfmt.Errorf("%w: not a request for a release", ErrMessage)
	}
	s.Hash, s.ReportData = hashOf(r.Statement), ReportData(r.Statement)
	c, err := openChallenge(&r.Challenge, b.Key)
	if err != nil || c.Instance != b.instance {
		return nil, s.Hash, ErrChallenge
	}
	if until, err := time.Parse(time.RFC3339, c.Expires); err != nil || now.After(until) {
		return nil, s.Hash, ErrExpired
	}
	s.Nonce = c.Nonce
	if s.Statement, err = parseStatement(r.Statement); err != nil {
		return nil, s.Hash, err
	}
	if s.Statement.Broker != b.Key || s.Statement.Challenge != challengeHash(r.Challenge.Payload) {
		return nil, s.Hash, ErrMismatch
	}
	return s, s.Hash, nil
}

// ClaimedKey is the key that a request's statement names, so that a broker with two finds its own.
// Nothing has been verified.
func ClaimedKey(line []byte) (k Key, err error) {
	var r Request
	if err := decode(trimLine(line), &r); err != nil {
		return k, err
	}
	s, err := parseStatement(r.Statement)
	if err != nil {
		return k, err
	}
	return s.Broker, nil
}

// CanSeal reports whether secrets could be sealed to a statement's key, by a mechanism that is
// allowed: what is asked for is consumed only if it can be given.
func (s *Statement) CanSeal(allowed ...string) error {
	if !slices.Contains(allowed, s.KEM) {
		return smallfmt.Errorf("%w: statement: kem is not allowed", ErrMessage)
	}
	_, _, err := sender(s, SHA512{})
	return err
}

// Release seals secrets to a statement's key. receipt is SHA-256 of the MAC by which the agent
// will show that it opened them.
func (b *Broker) Release(s *Shown, values map[string]Secret) (line []byte, receipt SHA256, err error) {
	enc, to, err := sender(s.Statement, s.Hash)
	if err != nil {
		return nil, receipt, err
	}
	size := 64
	for name, v := range values {
		size += len(name) + base64.StdEncoding.EncodedLen(len(v.Value)) + len(v.LUKSHeader) + 64
	}
	plain := encodeInto(make([]byte, 0, size), &secrets{Version: Version, Secrets: values})
	defer clear(plain)
	sealed, err := to.Seal(nil, plain)
	if err != nil {
		return nil, receipt, err
	}
	key, err := to.Export(exporter, 32)
	if err != nil {
		return nil, receipt, err
	}
	defer clear(key)
	e := sign(b.private, kindRelease, &Release{Version: Version, Statement: s.Hash, Ciphertext: append(enc, sealed...)})
	line = append(encode(e), '\n')
	if len(line) > MaxLine {
		return nil, receipt, smallfmt.Errorf(
			"release: %d bytes, at most %d: the secrets are too long",
			len(line),
			MaxLine,
		)
	}
	mac := receiptMAC(key, e.Payload)
	return line, sha256.Sum256(mac[:]), nil
}

// Deny refuses a statement.
func (b *Broker) Deny(statement SHA512, reason string, retry bool) []byte {
	return b.line(kindDenial, &Denial{Version: Version, Statement: statement, Reason: reason, Retry: retry})
}

// Pend says that a person will decide on a request.
func (b *Broker) Pend(statement SHA512, request uint64, retry time.Duration) []byte {
	return b.line(
		kindPending,
		&Pending{Version: Version, Statement: statement, Request: request, Retry: int(retry / time.Second)},
	)
}

// Status says what became of a statement.
func (b *Broker) Status(statement SHA512, state State, reason string) []byte {
	return b.line(kindStatus, &Status{Version: Version, Statement: statement, State: state, Reason: reason})
}

// ReadReceipt reads an agent's receipt. Its hash is compared with the one that Release returned.
func ReadReceipt(line []byte) (statement SHA512, hash SHA256, err error) {
	var r Receipt
	if err := decode(trimLine(line), &r); err != nil {
		return statement, hash, err
	}
	if r.Want != WantReceipt || r.Version != Version {
		return statement, hash, smallfmt.Errorf("%w: not a receipt", ErrMessage)
	}
	return r.Statement, sha256.Sum256(r.MAC[:]), nil
}

// ReadAskStatus reads a question for a status.
func ReadAskStatus(line []byte) (statement SHA512, err error) {
	var a AskStatus
	if err := decode(trimLine(line), &a); err != nil {
		return statement, err
	}
	if a.Want != WantStatus || a.Version != Version {
		return statement, smallfmt.Errorf("%w: not a question for a status", ErrMessage)
	}
	return a.Statement, nil
}

// AskForStatus is the line that asks what became of a statement.
func AskForStatus(statement SHA512) []byte {
	return append(encode(&AskStatus{Want: WantStatus, Version: Version, Statement: statement}), '\n')
}

// ReadStatus verifies a status, which only the broker whose key a guest pins can give.
func ReadStatus(line []byte, pin Key, statement SHA512) (*Status, error) {
	var e Envelope
	if err := decode(trimLine(line), &e); err != nil {
		return nil, err
	}
	s := &Status{}
	if err := e.open(pin, kindStatus, s); err != nil {
		return nil, err
	}
	switch {
	case s.Version != Version:
		return nil, smallfmt.Errorf("%w: status of version %d", ErrMessage, s.Version)
	case s.Statement != statement:
		return nil, smallfmt.Errorf("%w: it is the status of another statement", ErrAnswer)
	case !slices.Contains([]State{Unknown, Waiting, Denied, Released, Received}, s.State),
		s.Reason != "" && !isCode(s.Reason):
		return nil, smallfmt.Errorf("%w: not a state", ErrMessage)
	}
	return s, nil
}

// StatementOf finds the hash of the statement in a line that a guest sent, so that its host can
// ask for the status. Nothing of it has been verified.
func StatementOf(line []byte) (SHA512, bool) {
	var r Request
	if Want(line) != WantRelease || decode(trimLine(line), &r) != nil || len(r.Statement) == 0 {
		return SHA512{}, false
	}
	return hashOf(r.Statement), true
}

// Inject vouches for the secrets of a packet of SEV, which a guest finds in its memory.
func (b *Broker) Inject(name string, values map[string]Secret) []byte {
	p := &injected{Version: Version, Name: name, Secrets: map[string]SHA256{}}
	for n, s := range values {
		p.Secrets[n] = sha256.Sum256(s.Value)
	}
	return encode(sign(b.private, kindInjected, p))
}

// CheckInjected verifies that the broker whose key is pinned gave these secrets for a policy's
// name: exactly these.
func CheckInjected(envelope []byte, pin Key, name string, values map[string][]byte) error {
	var e Envelope
	if err := decode(envelope, &e); err != nil {
		return err
	}
	var p injected
	if err := e.open(pin, kindInjected, &p); err != nil {
		return err
	}
	if p.Version != Version || p.Name != name {
		return smallfmt.Errorf("%w: the secrets are for another guest", ErrAnswer)
	}
	if len(p.Secrets) != len(values) {
		return smallfmt.Errorf("%w: other secrets than the broker gave", ErrAnswer)
	}
	for n, v := range values {
		if want, ok := p.Secrets[n]; !ok || want != sha256.Sum256(v) {
			return smallfmt.Errorf("%w: other secrets than the broker gave", ErrAnswer)
		}
	}
	return nil
}

// IsSHA256 reports whether a text is a SHA-256 in lower-case hex.
func IsSHA256(text string) bool {
	return len(text) == 64 && strings.Trim(text, "0123456789abcdef") == ""
}

// InjectedNames are the secrets that an envelope of injected ones speaks of. Nothing has been
// verified.
func InjectedNames(envelope []byte) (names []string, err error) {
	var e Envelope
	if err := decode(envelope, &e); err != nil {
		return nil, err
	}
	var p injected
	if err := decode(e.Payload, &p); err != nil {
		return nil, err
	}
	for n := range p.Secrets {
		names = append(names, n)
	}
	return names, nil
}
