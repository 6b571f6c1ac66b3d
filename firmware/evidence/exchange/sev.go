package exchange

import (
	"crypto/sha256"
	"time"

	"github.com/vmlatch/vmlatch/firmware/smallfmt"
)

// HeaderSuffix ends the name of the entry, among injected secrets, that binds a volume's header.
const HeaderSuffix = ".luks-header"

// AskSession is a host's question for a launch session of SEV or SEV-ES: there the broker is
// asked by the host, before the guest exists.
type AskSession struct {
	Want       string
	Version    int
	Broker     Key
	Name       string // of the policy
	Technology string
	Hello      [16]byte
	PDH        []byte // certificate
	Chain      []byte // PEK, OCA, CEK
}

func (m *AskSession) code(c *codec) {
	c.text("want", &m.Want)
	c.integer("version", &m.Version)
	c.key("broker", &m.Broker)
	c.text("name", &m.Name)
	c.text("technology", &m.Technology)
	c.fixed("hello", m.Hello[:])
	c.blob("pdh", &m.PDH)
	c.blob("chain", &m.Chain)
}

// Session is what a launch begins with: the guest's policy is the broker's.
type Session struct {
	Version    int
	Broker     Key
	Name       string
	Technology string
	Hello      [16]byte
	Policy     uint32
	GODH       []byte // certificate of the owner's Diffie-Hellman key
	Session    []byte // blob of 128 bytes
	Token      []byte // the session's keys, which only this broker reads
}

func (m *Session) code(c *codec) {
	c.integer("version", &m.Version)
	c.key("broker", &m.Broker)
	c.text("name", &m.Name)
	c.text("technology", &m.Technology)
	c.fixed("hello", m.Hello[:])
	policy := uint64(m.Policy)
	if c.number("policy", &policy); policy > 1<<32-1 {
		c.fail("a policy has 32 bits")
	}
	m.Policy = uint32(policy)
	c.blob("godh", &m.GODH)
	c.blob("session", &m.Session)
	c.blob("token", &m.Token)
}

// AskPacket shows a measurement, for which the broker packs secrets.
type AskPacket struct {
	Want        string
	Version     int
	Broker      Key
	Token       []byte
	Measurement []byte // MAC and nonce, 48 bytes
	Major       uint8  // of the platform's firmware, as the MAC covers it
	Minor       uint8
	Build       uint8
}

func (m *AskPacket) code(c *codec) {
	c.text("want", &m.Want)
	c.integer("version", &m.Version)
	c.key("broker", &m.Broker)
	c.blob("token", &m.Token)
	c.blob("measurement", &m.Measurement)
	c.small("major", &m.Major)
	c.small("minor", &m.Minor)
	c.small("build", &m.Build)
}

// Packet is an encrypted secret for one launch.
type Packet struct {
	Version int
	Answers SHA256 // the line that asked
	Header  []byte
	Secret  []byte
}

func (m *Packet) code(c *codec) {
	c.integer("version", &m.Version)
	c.hash("answers", m.Answers[:])
	c.blob("header", &m.Header)
	c.blob("secret", &m.Secret)
}

// TokenLifetime is how long a session can be used.
const TokenLifetime = 10 * time.Minute

// Limits of what a host sends.
const (
	maxPDH   = 4 << 10
	maxChain = 16 << 10
	maxToken = 4 << 10
)

// Line is a message as it is sent.
func (a *AskSession) Line() []byte {
	a.Want, a.Version = WantSession, Version
	return append(encode(a), '\n')
}

// Line is a message as it is sent.
func (a *AskPacket) Line() []byte {
	a.Want, a.Version = WantPacket, Version
	return append(encode(a), '\n')
}

// ReadAskSession reads a host's question for a session.
func ReadAskSession(line []byte) (*AskSession, error) {
	a := &AskSession{}
	if err := decode(trimLine(line), a); err != nil {
		return nil, err
	}
	if a.Want != WantSession || a.Version != Version || !IsName(a.Name) || len(a.PDH) > maxPDH ||
		len(a.Chain) > maxChain || a.Technology != SEV && a.Technology != SEVES {
		return nil, smallfmt.Errorf("%w: not a question for a session", ErrMessage)
	}
	return a, nil
}

// ReadAskPacket reads a host's question for a packet.
func ReadAskPacket(line []byte) (*AskPacket, error) {
	a := &AskPacket{}
	if err := decode(trimLine(line), a); err != nil {
		return nil, err
	}
	if a.Want != WantPacket || a.Version != Version || len(a.Token) > maxToken || len(a.Measurement) != 48 {
		return nil, smallfmt.Errorf("%w: not a question for a packet", ErrMessage)
	}
	return a, nil
}

// Session answers a question for a session.
func (b *Broker) Session(a *AskSession, policy uint32, godh, session, token []byte) []byte {
	return b.line(kindSession, &Session{
		Version: Version, Broker: b.Key, Name: a.Name, Technology: a.Technology, Hello: a.Hello, Policy: policy,
		GODH: godh, Session: session, Token: token,
	})
}

// Packet answers a question for a packet.
func (b *Broker) Packet(asked, header, secret []byte) []byte {
	return b.line(kindPacket, &Packet{
		Version: Version, Answers: sha256.Sum256(trimLine(asked)), Header: header, Secret: secret,
	})
}

// LineHash names a host's question in a denial.
func LineHash(line []byte) SHA512 { return hashOf(trimLine(line)) }

// RefusedError is a denial of what a host asked.
type RefusedError struct{ Denial }

func (e *RefusedError) Error() string { return "the broker refuses: " + e.Reason }

// PendingError says that a person will decide on what a host asked.
type PendingError struct{ Pending }

func (e *PendingError) Error() string {
	return smallfmt.Sprintf("request %d waits for the owner's approval", e.Request)
}

// refused is the error of a denial, or of a pending request, that answers a question; nil if the
// envelope is neither.
func (e *Envelope) refused(pin Key, asked []byte) error {
	if e.PayloadType == kindPending.payloadType() {
		var p Pending
		if err := e.open(pin, kindPending, &p); err != nil {
			return err
		}
		if p.Version != Version || p.Statement != LineHash(asked) {
			return smallfmt.Errorf("%w: a pending request of something else", ErrAnswer)
		}
		p.Retry = min(max(p.Retry, 1), 60)
		return &PendingError{p}
	}
	if e.PayloadType != kindDenial.payloadType() {
		return nil
	}
	var d Denial
	if err := e.open(pin, kindDenial, &d); err != nil {
		return err
	}
	if d.Version != Version || d.Statement != LineHash(asked) || !isCode(d.Reason) {
		return smallfmt.Errorf("%w: a denial of something else", ErrAnswer)
	}
	return &RefusedError{d}
}

// ReadSession reads the answer to a question for a session, or the *RefusedError that the broker
// gave instead.
func ReadSession(line []byte, pin Key, asked *AskSession) (*Session, error) {
	var e Envelope
	if err := decode(trimLine(line), &e); err != nil {
		return nil, err
	}
	if err := e.refused(pin, asked.Line()); err != nil {
		return nil, err
	}
	s := &Session{}
	if err := e.open(pin, kindSession, s); err != nil {
		return nil, err
	}
	if s.Version != Version || s.Broker != pin || s.Hello != asked.Hello || s.Name != asked.Name ||
		s.Technology != asked.Technology {
		return nil, smallfmt.Errorf("%w: the session is for another question", ErrAnswer)
	}
	return s, nil
}

// ReadPacket reads the answer to a question for a packet, or the *RefusedError that the broker
// gave instead.
func ReadPacket(line []byte, pin Key, asked *AskPacket) (*Packet, error) {
	var e Envelope
	if err := decode(trimLine(line), &e); err != nil {
		return nil, err
	}
	question := asked.Line()
	if err := e.refused(pin, question); err != nil {
		return nil, err
	}
	p := &Packet{}
	if err := e.open(pin, kindPacket, p); err != nil {
		return nil, err
	}
	if p.Version != Version || p.Answers != sha256.Sum256(trimLine(question)) {
		return nil, smallfmt.Errorf("%w: the packet is for another question", ErrAnswer)
	}
	return p, nil
}
