package exchange

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func newBroker(t testing.TB) *Broker {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewBroker(private, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func newAgent(t testing.TB, b *Broker, kem string) *Agent {
	t.Helper()
	a, err := NewAgent(AgentConfig{
		Broker: b.Key, Name: "appliance", Technology: SNP, Secrets: []string{"disk", "api", "disk"}, KEM: kem,
		Seed: bytes.Repeat([]byte{7}, 64),
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

var now = time.Date(2026, 12, 1, 10, 0, 0, 0, time.UTC)

// exchangeOf runs an exchange up to the broker's decision.
func exchangeOf(t testing.TB, b *Broker, a *Agent) *Shown {
	t.Helper()
	ask, err := ReadAsk(a.Ask([16]byte{1, 2}))
	if err != nil {
		t.Fatal(err)
	}
	line, err := b.Challenge(ask, now)
	if err != nil {
		t.Fatal(err)
	}
	data, err := a.Challenge(line)
	if err != nil {
		t.Fatal(err)
	}
	line, err = a.Request([]byte("evidence"), nil, []byte("log"))
	if err != nil {
		t.Fatal(err)
	}
	s, hash, err := b.ReadRequest(line, now.Add(Lifetime))
	if err != nil || hash != a.Statement() || s.ReportData != data {
		t.Fatalf("the request is read as %v: %v", hash, err)
	}
	if got, ok := StatementOf(line); !ok || got != hash {
		t.Errorf("its host finds the statement %v, %v, want %v", got, ok, hash)
	}
	if k, err := ClaimedKey(line); err != nil || k != b.Key {
		t.Errorf("claimed key %v, %v, want %v", k, err, b.Key)
	}
	return s
}

func TestExchange(t *testing.T) {
	for _, kem := range []string{Hybrid, X25519} {
		b := newBroker(t)
		a := newAgent(t, b, kem)
		s := exchangeOf(t, b, a)
		if err := s.Statement.CanSeal(kem); err != nil {
			t.Fatal(err)
		}
		give := map[string]Secret{
			"api":  {Value: []byte("<token>&")},
			"disk": {Value: []byte{0, 1, 255}, LUKSHeader: strings.Repeat("ab", 32)},
		}
		line, want, err := b.Release(s, give)
		if err != nil {
			t.Fatal(err)
		}
		got, err := a.Answer(line)
		if err != nil || string(got.Secrets["api"].Value) != "<token>&" || got.Secrets["disk"].LUKSHeader == "" {
			t.Fatalf("%s: %+v, %v", kem, got, err)
		}
		if hash, mac, err := ReadReceipt(got.Receipt); err != nil || mac != want || hash != s.Hash {
			t.Errorf("%s: receipt %v, %v", kem, mac, err)
		}
		if _, err := newAgentAt(t, b, a, kem).Answer(line); err == nil {
			t.Errorf("%s: the release opens for the key of another boot", kem)
		}
		a.Wipe()
		if _, err := a.Answer(line); err == nil {
			t.Errorf("%s: the release opens after the key was wiped", kem)
		}
	}
}

// newAgentAt is an agent with another key that has come as far.
func newAgentAt(t *testing.T, b *Broker, a *Agent, kem string) *Agent {
	t.Helper()
	other, err := NewAgent(AgentConfig{
		Broker: b.Key, Name: a.name, Technology: SNP, Secrets: a.secrets, KEM: kem, Seed: bytes.Repeat([]byte{8}, 32),
	})
	if err != nil {
		t.Fatal(err)
	}
	other.challenge, other.statement, other.hash = a.challenge, a.statement, a.hash
	return other
}

// TestEveryByteCounts: no byte of any message can differ.
func TestEveryByteCounts(t *testing.T) {
	b := newBroker(t)
	a := newAgent(t, b, X25519)
	ask := a.Ask([16]byte{3})
	read, err := ReadAsk(ask)
	if err != nil {
		t.Fatal(err)
	}
	challenge, err := b.Challenge(read, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Challenge(challenge); err != nil {
		t.Fatal(err)
	}
	request, err := a.Request([]byte("evidence"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, hash, err := b.ReadRequest(request, now)
	if err != nil {
		t.Fatal(err)
	}
	release, _, err := b.Release(s, map[string]Secret{"disk": {Value: []byte("x")}, "api": {Value: []byte("y")}})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		line []byte
		read func([]byte) error
	}{
		"challenge": {challenge, func(l []byte) error { _, err := newlyAsked(t, b, a).Challenge(l); return err }},
		"release":   {release, func(l []byte) error { _, err := a.Answer(l); return err }},
		"denial":    {b.Deny(hash, "policy", false), func(l []byte) error { _, err := a.Answer(l); return err }},
		"pending":   {b.Pend(hash, 3, time.Second), func(l []byte) error { _, err := a.Answer(l); return err }},
		"status": {b.Status(hash, Released, ""), func(l []byte) error {
			_, err := ReadStatus(l, b.Key, hash)
			return err
		}},
	} {
		if err := c.read(c.line); err != nil {
			t.Fatalf("%s as it is: %v", name, err)
		}
		for i := range c.line {
			bad := slices.Clone(c.line)
			bad[i] ^= 1
			if i == len(bad)-1 { // the line's end
				continue
			}
			if c.read(bad) == nil {
				t.Errorf("%s: byte %d (%q) can be %q", name, i, c.line[i], bad[i])
			}
			if c.read(c.line[:i]) == nil && i < len(c.line)-1 {
				t.Errorf("%s: is taken when it is cut off at %d of %d", name, i, len(c.line))
			}
		}
	}
	for i := range request { // its evidence is judged later
		bad := slices.Clone(request)
		bad[i] ^= 1
		if _, got, err := b.ReadRequest(bad, now); err == nil && got == hash &&
			!bytes.Contains(bad, []byte(`"statement":"`+base64.StdEncoding.EncodeToString(a.statement))) {
			t.Errorf("request: byte %d can be another", i)
		}
	}
}

func newlyAsked(t *testing.T, b *Broker, a *Agent) *Agent {
	t.Helper()
	other := newAgent(t, b, X25519)
	other.hello = a.hello
	return other
}

// TestRequestsRefused: what does not answer this broker's challenge is told apart.
func TestRequestsRefused(t *testing.T) {
	b, other := newBroker(t), newBroker(t)
	a := newAgent(t, b, X25519)
	s := exchangeOf(t, b, a)
	line, err := a.Request([]byte("evidence"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.ReadRequest(line, now.Add(Lifetime+time.Second)); !errors.Is(err, ErrExpired) {
		t.Errorf("after its time: %v, want ErrExpired", err)
	}
	if _, _, err := other.ReadRequest(line, now); !errors.Is(err, ErrChallenge) {
		t.Errorf("to another broker: %v, want ErrChallenge", err)
	}
	again, err := NewBroker(b.private, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := again.ReadRequest(line, now); !errors.Is(err, ErrChallenge) {
		t.Errorf("after a restart: %v, want ErrChallenge", err)
	}
	r := *s.Request
	old := *s.Statement
	old.Challenge[0] ^= 1
	r.Statement = encode(&old)
	if _, hash, err := b.ReadRequest(encode(&r), now); !errors.Is(err, ErrMismatch) || hash != hashOf(r.Statement) {
		t.Errorf("a statement for another challenge: %v, want ErrMismatch", err)
	}
	old = *s.Statement
	old.Broker = other.Key
	r.Statement = encode(&old)
	if _, _, err := b.ReadRequest(encode(&r), now); !errors.Is(err, ErrMismatch) {
		t.Errorf("a statement for another broker: %v, want ErrMismatch", err)
	}
	for _, long := range []func(*Request){
		func(r *Request) { r.Log = make([]byte, MaxLog+1) },
		func(r *Request) { r.Evidence = nil },
		func(r *Request) { r.Want = WantChallenge },
		func(r *Request) { r.Version = 2 },
		func(r *Request) { r.Evidence = make([]byte, MaxLine) },
	} {
		r := *s.Request
		if long(&r); true {
			if _, _, err := b.ReadRequest(encode(&r), now); !errors.Is(err, ErrMessage) {
				t.Errorf("%.60s: %v, want ErrMessage", encode(&r), err)
			}
		}
	}
}

// TestSmallOrder: with such a key any host could sign in the broker's name.
func TestSmallOrder(t *testing.T) {
	forged := make([]byte, ed25519.SignatureSize) // R is the identity, S is 0
	forged[0] = 1
	accepted := 0
	for _, text := range smallOrder {
		for _, sign := range []byte{0, 0x80} {
			b, err := hex.DecodeString(text)
			if err != nil {
				t.Fatal(err)
			}
			b[31] |= sign
			pin := keyPrefix + base64.RawURLEncoding.EncodeToString(b)
			if _, err := ParseKey(pin); !errors.Is(err, ErrKey) {
				t.Errorf("%x: %v, want ErrKey", b, err)
			}
			if ed25519.Verify(b, []byte("anything"), forged) {
				accepted++
			}
		}
	}
	if accepted == 0 {
		t.Error("no such key accepts a forged signature: the test shows nothing")
	}
	good := newBroker(t).Key
	if k, err := ParseKey(good.String()); err != nil || k != good {
		t.Errorf("%v: %v", good, err)
	}
	for _, bad := range []string{
		"", "ed25519:", good.String()[8:], good.String() + "=", good.String()[:50], "ED25519" + good.String()[7:],
		strings.Replace(good.String(), ":", ":\n", 1), good.String() + "\n",
	} {
		if _, err := ParseKey(bad); !errors.Is(err, ErrKey) {
			t.Errorf("%q: %v, want ErrKey", bad, err)
		}
	}
}

func TestSessions(t *testing.T) {
	b, other := newBroker(t), newBroker(t)
	ask := &AskSession{
		Broker:     b.Key,
		Name:       "appliance",
		Technology: SEVES,
		Hello:      [16]byte{1},
		PDH:        []byte{1},
		Chain:      []byte{2},
	}
	read, err := ReadAskSession(ask.Line())
	if err != nil {
		t.Fatal(err)
	}
	line := b.Session(read, 7, []byte("godh"), []byte("blob"), []byte("token"))
	s, err := ReadSession(line, b.Key, ask)
	if err != nil || s.Policy != 7 || string(s.Token) != "token" {
		t.Fatalf("%+v, %v", s, err)
	}
	if _, err := ReadSession(line, other.Key, ask); !errors.Is(err, ErrSignature) {
		t.Errorf("of another broker: %v, want ErrSignature", err)
	}
	later := *ask
	later.Hello[0]++
	if _, err := ReadSession(line, b.Key, &later); !errors.Is(err, ErrAnswer) {
		t.Errorf("of another question: %v, want ErrAnswer", err)
	}
	var refused *RefusedError
	if _, err := ReadSession(b.Deny(LineHash(ask.Line()), "chip-not-allowed", false), b.Key, ask); !errors.As(
		err,
		&refused,
	) ||
		refused.Reason != "chip-not-allowed" {
		t.Errorf("a denial: %v, want a RefusedError", err)
	}
	if _, err := ReadSession(b.Deny(LineHash(later.Line()), "policy", false), b.Key, ask); !errors.Is(err, ErrAnswer) {
		t.Errorf("a denial of another question: %v, want ErrAnswer", err)
	}
	packet := &AskPacket{Broker: b.Key, Token: s.Token, Measurement: make([]byte, 48), Major: 1}
	if _, err := ReadAskPacket(packet.Line()); err != nil {
		t.Fatal(err)
	}
	line = b.Packet(packet.Line(), []byte("header"), []byte("secret"))
	if p, err := ReadPacket(line, b.Key, packet); err != nil || string(p.Secret) != "secret" {
		t.Errorf("packet: %+v, %v", p, err)
	}
	packet.Minor++
	if _, err := ReadPacket(line, b.Key, packet); !errors.Is(err, ErrAnswer) {
		t.Errorf("a packet for another question: %v, want ErrAnswer", err)
	}
	for _, bad := range [][]byte{
		(&AskSession{Broker: b.Key, Name: "../x", Technology: SEV}).Line(),
		(&AskSession{Broker: b.Key, Name: "x", Technology: SNP}).Line(),
		(&AskSession{Broker: b.Key, Name: "x", Technology: SEV, PDH: make([]byte, maxPDH+1)}).Line(),
		ask.Line()[:20], []byte("{}"), nil,
	} {
		if _, err := ReadAskSession(bad); !errors.Is(err, ErrMessage) {
			t.Errorf("%.60s: %v, want ErrMessage", bad, err)
		}
	}
}

func FuzzLines(f *testing.F) {
	b := newBroker(f)
	a := newAgent(f, b, X25519)
	f.Add(a.Ask([16]byte{1}))
	ask, err := ReadAsk(a.Ask([16]byte{1}))
	if err != nil {
		f.Fatal(err)
	}
	line, err := b.Challenge(ask, now)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line)
	if _, err := a.Challenge(line); err != nil {
		f.Fatal(err)
	}
	if line, err = a.Request([]byte("evidence"), []byte("t"), []byte("l")); err != nil {
		f.Fatal(err)
	}
	f.Add(line)
	f.Add(b.Deny(a.Statement(), "policy", true))
	f.Add((&AskSession{Broker: b.Key, Name: "x", Technology: SEV}).Line())
	f.Add((&AskPacket{Broker: b.Key, Measurement: make([]byte, 48)}).Line())
	f.Add(AskForStatus(a.Statement()))
	f.Fuzz(func(t *testing.T, line []byte) {
		for _, read := range []func() (message, error){
			func() (message, error) { return ReadAsk(line) },
			func() (message, error) { return ReadAskSession(line) },
			func() (message, error) { return ReadAskPacket(line) },
		} {
			if m, err := read(); err == nil && !bytes.Equal(encode(m), trimLine(line)) {
				t.Errorf("%q is taken, and is not the one form", line)
			}
		}
		if s, _, err := b.ReadRequest(line, now); err == nil && !bytes.Equal(encode(s.Request), trimLine(line)) {
			t.Errorf("%q is taken, and is not the one form", line)
		}
		_, _ = a.Challenge(line)
		if got, err := a.Answer(line); err == nil && got.Secrets != nil {
			t.Error("secrets without the broker's key")
		}
		_, _, _ = ReadReceipt(line)
		_, _ = ReadAskStatus(line)
		_, _ = StatementOf(line)
		_, _ = ClaimedKey(line)
	})
}
