package exchange

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"slices"
	"strings"
	"time"

	"github.com/vmlatch/vmlatch/firmware/smallfmt"
)

// Version is the version of all messages.
const Version = 1

// What a line from an agent or a host wants.
const (
	WantChallenge = "challenge"
	WantRelease   = "release"
	WantReceipt   = "receipt"
	WantStatus    = "status"
	WantSession   = "session"
	WantPacket    = "packet"
)

// Want is what a line wants; "" if it is none. Nothing else of it has been checked.
func Want(line []byte) string {
	rest, ok := bytes.CutPrefix(line, []byte(`{"want":"`))
	word, _, found := bytes.Cut(rest[:min(len(rest), 32)], []byte(`"`))
	if !ok || !found {
		return ""
	}
	return string(word)
}

// Technologies.
const (
	SNP   = "sev-snp"
	TDX   = "tdx"
	SEVES = "sev-es"
	SEV   = "sev"
	VTPM  = "vtpm" // a quote of the guest's TPM, which its host has made
)

// Ask is an agent's first message. Its name and technology are hints: the statement's count.
type Ask struct {
	Want       string
	Version    int
	Broker     Key
	Name       string
	Technology string
	Hello      [16]byte // random, of this attempt
}

func (m *Ask) code(c *codec) {
	c.text("want", &m.Want)
	c.integer("version", &m.Version)
	c.key("broker", &m.Broker)
	c.text("name", &m.Name)
	c.text("technology", &m.Technology)
	c.fixed("hello", m.Hello[:])
}

// Challenge is what the agent must show evidence for.
type Challenge struct {
	Version  int
	Broker   Key
	Instance [16]byte // random, of this start of the broker
	Nonce    [32]byte
	Hello    [16]byte
	Expires  string // RFC 3339, in UTC; for the broker: a guest's clock is its host's
}

func (m *Challenge) code(c *codec) {
	c.integer("version", &m.Version)
	c.key("broker", &m.Broker)
	c.fixed("instance", m.Instance[:])
	c.fixed("nonce", m.Nonce[:])
	c.fixed("hello", m.Hello[:])
	c.text("expires", &m.Expires)
}

// Lifetime is how long a challenge can be answered. The host may make a report take a minute.
const Lifetime = 120 * time.Second

// Request shows evidence for a challenge.
type Request struct {
	Want      string
	Version   int
	Challenge Envelope
	Statement []byte
	Evidence  []byte
	Table     []byte // of certificates, from the host
	Log       []byte // of events
}

func (m *Request) code(c *codec) {
	c.text("want", &m.Want)
	c.integer("version", &m.Version)
	c.nested("challenge", &m.Challenge)
	c.blob("statement", &m.Statement)
	c.blob("evidence", &m.Evidence)
	c.optBlob("table", &m.Table)
	c.optBlob("log", &m.Log)
}

// MaxLog is the longest event log in a request, in bytes, without its padding.
const MaxLog = 128 << 10

// Statement is what the evidence's report data commit to.
type Statement struct {
	Version    int
	Broker     Key
	Challenge  SHA256 // of the challenge's payload
	Technology string
	Name       string   // of the policy
	Secrets    []string // sorted, each once
	KEM        string
	Key        []byte
}

func (m *Statement) code(c *codec) {
	c.integer("version", &m.Version)
	c.key("broker", &m.Broker)
	c.hash("challenge", m.Challenge[:])
	c.text("technology", &m.Technology)
	c.text("name", &m.Name)
	c.list("secrets", &m.Secrets)
	c.text("kem", &m.KEM)
	c.blob("key", &m.Key)
}

// ReportData is what the evidence over a statement's bytes must carry.
func ReportData(statement []byte) [64]byte {
	return sha512.Sum512(slices.Concat([]byte("vmlatch evidence v1\x00"), statement))
}

// maxSecrets bounds how many secrets a statement can ask for.
const maxSecrets = 64

// parseStatement reads a statement's form; who it is for is not compared yet.
func parseStatement(b []byte) (*Statement, error) {
	s := &Statement{}
	if err := decode(b, s); err != nil {
		return nil, err
	}
	bad := func(format string, args ...any) (*Statement, error) {
		return nil, smallfmt.Errorf("%w: statement: %s", ErrMessage, smallfmt.Sprintf(format, args...))
	}
	switch {
	case s.Version != Version:
		return bad("version %d", s.Version)
	case s.Technology != SNP && s.Technology != TDX && s.Technology != VTPM:
		return bad("no technology of evidence")
	case !IsName(s.Name):
		return bad("not a policy's name")
	case len(s.Secrets) == 0 || len(s.Secrets) > maxSecrets:
		return bad("%d secrets, must be 1 to %d", len(s.Secrets), maxSecrets)
	}
	for i, name := range s.Secrets {
		if !IsName(name) {
			return bad("not a secret's name")
		}
		if i > 0 && name <= s.Secrets[i-1] {
			return bad("secrets must be sorted, each once")
		}
	}
	return s, nil
}

// IsName reports whether a text is a name of a policy or of a secret: 1 to 63 lower-case letters,
// digits, dots and dashes, beginning with a letter or digit.
func IsName(text string) bool {
	const first = "abcdefghijklmnopqrstuvwxyz0123456789"
	return text != "" && len(text) <= 63 && strings.IndexByte(first, text[0]) >= 0 &&
		strings.Trim(text, first+".-") == ""
}

// Release carries the secrets, sealed to the statement's key.
type Release struct {
	Version    int
	Statement  SHA512
	Ciphertext []byte // HPKE: encapsulated key, then ciphertext
}

func (m *Release) code(c *codec) {
	c.integer("version", &m.Version)
	c.hash("statement", m.Statement[:])
	c.blob("ciphertext", &m.Ciphertext)
}

// Denial refuses a request.
type Denial struct {
	Version   int
	Statement SHA512
	Reason    string // a code
	Retry     bool
}

func (m *Denial) code(c *codec) {
	c.integer("version", &m.Version)
	c.hash("statement", m.Statement[:])
	c.text("reason", &m.Reason)
	c.flag("retry", &m.Retry)
}

// Pending says that a person will decide.
type Pending struct {
	Version   int
	Statement SHA512
	Request   uint64 // its number
	Retry     int    // seconds
}

func (m *Pending) code(c *codec) {
	c.integer("version", &m.Version)
	c.hash("statement", m.Statement[:])
	c.number("request", &m.Request)
	c.integer("retry", &m.Retry)
}

// secrets is the plaintext of a release.
type secrets struct {
	Version int
	Secrets map[string]Secret
}

func (m *secrets) code(c *codec) {
	c.integer("version", &m.Version)
	dictionary(c, "secrets", &m.Secrets, func(s *Secret) { c.object(s) })
}

// Secret is one of a release.
type Secret struct {
	Value      []byte
	LUKSHeader string // SHA-256 of the volume's header area, or "unchecked"
}

func (m *Secret) code(c *codec) {
	c.blob("value", &m.Value)
	c.optText("luks-header", &m.LUKSHeader)
}

// Unchecked is the LUKS header of a volume whose owner does not bind it.
const Unchecked = "unchecked"

// Receipt says that a release was opened.
type Receipt struct {
	Want      string
	Version   int
	Statement SHA512
	MAC       [32]byte
}

func (m *Receipt) code(c *codec) {
	c.text("want", &m.Want)
	c.integer("version", &m.Version)
	c.hash("statement", m.Statement[:])
	c.fixed("mac", m.MAC[:])
}

// AskStatus asks what became of a statement.
type AskStatus struct {
	Want      string
	Version   int
	Statement SHA512
}

func (m *AskStatus) code(c *codec) {
	c.text("want", &m.Want)
	c.integer("version", &m.Version)
	c.hash("statement", m.Statement[:])
}

// State is what became of a statement.
type State string

// States.
const (
	Unknown  State = "unknown"
	Waiting  State = "pending"
	Denied   State = "denied"
	Released State = "released"
	Received State = "received"
)

// Status is the answer, which a host can check with the key that its guest pins.
type Status struct {
	Version   int
	Statement SHA512
	State     State
	Reason    string
}

func (m *Status) code(c *codec) {
	c.integer("version", &m.Version)
	c.hash("statement", m.Statement[:])
	state := string(m.State)
	c.text("state", &state)
	m.State = State(state)
	c.optText("reason", &m.Reason)
}

// injected vouches for the secrets that a SEV guest finds in its memory: its host packs none of
// its own next to it.
type injected struct {
	Version int
	Name    string
	Secrets map[string]SHA256 // of the values
}

func (m *injected) code(c *codec) {
	c.integer("version", &m.Version)
	c.text("name", &m.Name)
	dictionary(c, "secrets", &m.Secrets, func(h *SHA256) { c.hex(h[:]) })
}

// isCode reports whether a text is a reason's code, which is safe to print.
func isCode(text string) bool {
	return text != "" && len(text) <= 64 && strings.Trim(text, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// hashOf is the hash by which messages name a statement.
func hashOf(statement []byte) SHA512 { return sha512.Sum512(statement) }

// trimLine is a line without its end.
func trimLine(line []byte) []byte { return bytes.TrimSuffix(line, []byte("\n")) }

// challengeHash is what a statement says of its challenge.
func challengeHash(payload []byte) SHA256 { return sha256.Sum256(payload) }
