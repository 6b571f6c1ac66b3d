package exchange

import (
	"crypto/hpke"
	"errors"

	"github.com/vmlatch/vmlatch/firmware/smallfmt"
)

// ErrAnswer is wrapped by errors about answers that are none: of another attempt, or not what a
// broker answers.
var ErrAnswer = errors.New("not an answer to this request")

// Agent is the guest's side of the exchange, for one boot: its key is the only one that the
// broker serves.
type Agent struct {
	pin        Key
	name       string
	technology string
	secrets    []string
	kem        string
	key        hpke.PrivateKey

	hello     [16]byte
	challenge *Envelope
	statement []byte
	hash      SHA512
}

// AgentConfig is what an agent asks for.
type AgentConfig struct {
	Broker     Key      // as the measured command line pins it
	Name       string   // of the policy
	Technology string   // SNP, TDX or VTPM
	Secrets    []string // by name
	KEM        string   // Hybrid unless the policy allows another
	Seed       []byte   // at least 32 random bytes, from which the key is derived; wiped
}

// NewAgent makes the key of this boot.
func NewAgent(c AgentConfig) (*Agent, error) {
	defer clear(c.Seed)
	if len(c.Seed) < 32 {
		return nil, smallfmt.Errorf("agent's key: %d bytes of seed, must be at least 32", len(c.Seed))
	}
	if c.KEM == "" {
		c.KEM = Hybrid
	}
	k, err := kemNamed(c.KEM)
	if err != nil {
		return nil, err
	}
	a := &Agent{pin: c.Broker, name: c.Name, technology: c.Technology, kem: c.KEM}
	for _, name := range c.Secrets {
		a.secrets = insert(a.secrets, name)
	}
	if a.key, err = k.DeriveKeyPair(c.Seed); err != nil {
		return nil, smallfmt.Errorf("agent's key: %w", err)
	}
	_, err = parseStatement(a.encodeStatement(SHA256{}))
	return a, err
}

func (a *Agent) encodeStatement(challenge SHA256) []byte {
	return encode(&Statement{
		Version: Version, Broker: a.pin, Challenge: challenge, Technology: a.technology, Name: a.name,
		Secrets: a.secrets, KEM: a.kem, Key: a.key.PublicKey().Bytes(),
	})
}

// Ask begins an attempt. hello is random, and new for each attempt: lines that a port kept from
// an earlier one do not have it.
func (a *Agent) Ask(hello [16]byte) []byte {
	a.hello, a.challenge, a.statement = hello, nil, nil
	return append(encode(&Ask{
		Want: WantChallenge, Version: Version, Broker: a.pin, Name: a.name, Technology: a.technology, Hello: hello,
	}), '\n')
}

// Challenge reads the broker's answer, and returns what the evidence must carry as its report
// data. An error means that the line is not the challenge of this attempt.
func (a *Agent) Challenge(line []byte) (data [64]byte, err error) {
	var e Envelope
	if err := decode(trimLine(line), &e); err != nil {
		return data, err
	}
	c, err := openChallenge(&e, a.pin)
	if err != nil {
		return data, err
	}
	if c.Hello != a.hello {
		return data, smallfmt.Errorf("%w: the challenge is of another attempt", ErrAnswer)
	}
	a.challenge, a.statement = &e, a.encodeStatement(challengeHash(e.Payload))
	a.hash = hashOf(a.statement)
	return ReportData(a.statement), nil
}

func openChallenge(e *Envelope, k Key) (*Challenge, error) {
	c := &Challenge{}
	if err := e.open(k, kindChallenge, c); err != nil {
		return nil, err
	}
	switch {
	case c.Version != Version:
		return nil, smallfmt.Errorf("%w: challenge of version %d", ErrMessage, c.Version)
	case c.Broker != k:
		return nil, smallfmt.Errorf("%w: the challenge is of another broker", ErrAnswer)
	}
	return c, nil
}

// Request shows the evidence for the challenge.
func (a *Agent) Request(evidence, table, log []byte) ([]byte, error) {
	if a.challenge == nil {
		return nil, errors.New("there is no challenge yet")
	}
	line := append(encode(&Request{
		Want: WantRelease, Version: Version, Challenge: *a.challenge, Statement: a.statement, Evidence: evidence,
		Table: table, Log: log,
	}), '\n')
	if len(line) > MaxLine {
		return nil, smallfmt.Errorf("%w: %d bytes, at most %d", ErrMessage, len(line), MaxLine)
	}
	return line, nil
}

// Answer is what a broker answered: one of its fields is set.
type Answer struct {
	Secrets map[string]Secret
	Receipt []byte // with Secrets: the line that tells the broker
	Denial  *Denial
	Pending *Pending
}

// Answer reads the answer to a request. An error means that it is none: the attempt has failed,
// and may be repeated. Only a denial that verifies ends an agent.
func (a *Agent) Answer(line []byte) (*Answer, error) {
	var e Envelope
	if err := decode(trimLine(line), &e); err != nil {
		return nil, err
	}
	if a.statement == nil {
		return nil, smallfmt.Errorf("%w: nothing was asked", ErrAnswer)
	}
	switch e.PayloadType {
	case kindRelease.payloadType():
		return a.release(&e)
	case kindDenial.payloadType():
		d := &Denial{}
		if err := e.open(a.pin, kindDenial, d); err != nil {
			return nil, err
		}
		if !isCode(d.Reason) {
			return nil, smallfmt.Errorf("%w: a denial without a code", ErrMessage)
		}
		return &Answer{Denial: d}, a.mine(d.Version, d.Statement)
	case kindPending.payloadType():
		p := &Pending{}
		if err := e.open(a.pin, kindPending, p); err != nil {
			return nil, err
		}
		p.Retry = min(max(p.Retry, 1), 60)
		return &Answer{Pending: p}, a.mine(p.Version, p.Statement)
	}
	return nil, smallfmt.Errorf("%w: an envelope of another kind", ErrAnswer)
}

// mine refuses what does not answer this agent's statement.
func (a *Agent) mine(version int, statement SHA512) error {
	if version != Version {
		return smallfmt.Errorf("%w: answer of version %d", ErrMessage, version)
	}
	if statement != a.hash {
		return smallfmt.Errorf("%w: it answers another statement", ErrAnswer)
	}
	return nil
}

func (a *Agent) release(e *Envelope) (*Answer, error) {
	var r Release
	if err := e.open(a.pin, kindRelease, &r); err != nil {
		return nil, err
	}
	if err := a.mine(r.Version, r.Statement); err != nil {
		return nil, err
	}
	n := encSize(a.kem)
	if len(r.Ciphertext) < n {
		return nil, smallfmt.Errorf("%w: the ciphertext is cut off", ErrMessage)
	}
	from, err := hpke.NewRecipient(r.Ciphertext[:n], a.key, hpke.HKDFSHA256(), hpke.AES256GCM(), info(a.hash))
	if err != nil {
		return nil, smallfmt.Errorf("%w: the release does not open", ErrAnswer)
	}
	plain, err := from.Open(nil, r.Ciphertext[n:])
	if err != nil {
		return nil, smallfmt.Errorf("%w: the release does not open", ErrAnswer)
	}
	defer clear(plain)
	var s secrets
	if err := decode(plain, &s); err != nil {
		Wipe(s.Secrets) // those that were read
		return nil, err
	}
	if err := a.asked(&s); err != nil {
		Wipe(s.Secrets)
		return nil, err
	}
	key, err := from.Export(exporter, 32)
	if err != nil {
		Wipe(s.Secrets)
		return nil, err
	}
	defer clear(key)
	receipt := append(encode(&Receipt{
		Want: WantReceipt, Version: Version, Statement: a.hash, MAC: receiptMAC(key, e.Payload),
	}), '\n')
	return &Answer{Secrets: s.Secrets, Receipt: receipt}, nil
}

// asked refuses a release that has not exactly the secrets that were asked for.
func (a *Agent) asked(s *secrets) error {
	if s.Version != Version {
		return smallfmt.Errorf("%w: secrets of version %d", ErrMessage, s.Version)
	}
	for _, name := range a.secrets {
		x, ok := s.Secrets[name]
		if !ok || len(s.Secrets) != len(a.secrets) {
			return smallfmt.Errorf("%w: these are not the secrets that were asked for", ErrAnswer)
		}
		if x.LUKSHeader != "" && x.LUKSHeader != Unchecked && !IsSHA256(x.LUKSHeader) {
			return smallfmt.Errorf("%w: not a SHA-256 of a LUKS header", ErrMessage)
		}
	}
	return nil
}

// Statement is the hash by which messages name the agent's statement, and the broker's status.
func (a *Agent) Statement() SHA512 { return a.hash }

// Wipe forgets the key, as far as Go lets it: nothing that comes after can open a release.
func (a *Agent) Wipe() { a.key, a.challenge, a.statement = nil, nil, nil }

// Wipe clears the values of secrets.
func Wipe(s map[string]Secret) {
	for _, x := range s {
		clear(x.Value)
	}
}

// encSize is the length of a kem's encapsulated key, in bytes (RFC 9180, section 7.1;
// draft-ietf-hpke-pq).
func encSize(kem string) int {
	if kem == X25519 {
		return 32
	}
	return 1120
}
