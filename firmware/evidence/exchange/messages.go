package exchange

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
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
	var m struct {
		Want string `json:"want"`
	}
	if json.Unmarshal(line, &m) != nil {
		return ""
	}
	return m.Want
}

// Technologies.
const (
	SNP   = "sev-snp"
	TDX   = "tdx"
	SEVES = "sev-es"
	SEV   = "sev"
)

// Ask is an agent's first message. Its name and technology are hints: the statement's count.
type Ask struct {
	Want       string  `json:"want"`
	Version    int     `json:"version"`
	Broker     Key     `json:"broker"`
	Name       string  `json:"name"`
	Technology string  `json:"technology"`
	Hello      Bytes16 `json:"hello"` // random, of this attempt
}

// Challenge is what the agent must show evidence for.
type Challenge struct {
	Version  int       `json:"version"`
	Broker   Key       `json:"broker"`
	Instance Bytes16   `json:"instance"` // random, of this start of the broker
	Nonce    Bytes32   `json:"nonce"`
	Hello    Bytes16   `json:"hello"`
	Expires  time.Time `json:"expires"` // for the broker: a guest's clock is its host's
}

// Lifetime is how long a challenge can be answered. The host may make a report take a minute.
const Lifetime = 120 * time.Second

// Request shows evidence for a challenge.
type Request struct {
	Want      string   `json:"want"`
	Version   int      `json:"version"`
	Challenge Envelope `json:"challenge"`
	Statement Bytes    `json:"statement"`
	Evidence  Bytes    `json:"evidence"`
	Table     Bytes    `json:"table,omitempty"` // of certificates, from the host
	Log       Bytes    `json:"log,omitempty"`   // of events
}

// MaxLog is the longest event log in a request, in bytes, without its padding.
const MaxLog = 128 << 10

// Statement is what the evidence's report data commit to.
type Statement struct {
	Version    int      `json:"version"`
	Broker     Key      `json:"broker"`
	Challenge  SHA256   `json:"challenge"` // of the challenge's payload
	Technology string   `json:"technology"`
	Name       string   `json:"name"`    // of the policy
	Secrets    []string `json:"secrets"` // sorted, each once
	KEM        string   `json:"kem"`
	Key        Bytes    `json:"key"`
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
		return nil, fmt.Errorf("%w: statement: %s", ErrMessage, fmt.Sprintf(format, args...))
	}
	switch {
	case s.Version != Version:
		return bad("version %d", s.Version)
	case s.Technology != SNP && s.Technology != TDX:
		return bad("no technology of evidence")
	case !IsName(s.Name):
		return bad("not a policy's name")
	case len(s.Secrets) == 0 || len(s.Secrets) > maxSecrets:
		return bad("%d secrets, must be 1 to %d", len(s.Secrets), maxSecrets)
	case !slices.IsSorted(s.Secrets) || len(slices.Compact(slices.Clone(s.Secrets))) < len(s.Secrets):
		return bad("secrets must be sorted, each once")
	}
	for _, name := range s.Secrets {
		if !IsName(name) {
			return bad("not a secret's name")
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
	Version    int    `json:"version"`
	Statement  SHA512 `json:"statement"`
	Ciphertext Bytes  `json:"ciphertext"` // HPKE: encapsulated key, then ciphertext
}

// Denial refuses a request.
type Denial struct {
	Version   int    `json:"version"`
	Statement SHA512 `json:"statement"`
	Reason    string `json:"reason"` // a code
	Retry     bool   `json:"retry"`
}

// Pending says that a person will decide.
type Pending struct {
	Version   int    `json:"version"`
	Statement SHA512 `json:"statement"`
	Request   uint64 `json:"request"` // its number
	Retry     int    `json:"retry"`   // seconds
}

// secrets is the plaintext of a release.
type secrets struct {
	Version int               `json:"version"`
	Secrets map[string]Secret `json:"secrets"`
}

// Secret is one of a release.
type Secret struct {
	Value      Bytes  `json:"value"`
	LUKSHeader string `json:"luks-header,omitempty"` // SHA-256 of the volume's header area, or "unchecked"
}

// Unchecked is the LUKS header of a volume whose owner does not bind it.
const Unchecked = "unchecked"

// Receipt says that a release was opened.
type Receipt struct {
	Want      string  `json:"want"`
	Version   int     `json:"version"`
	Statement SHA512  `json:"statement"`
	MAC       Bytes32 `json:"mac"`
}

// AskStatus asks what became of a statement.
type AskStatus struct {
	Want      string `json:"want"`
	Version   int    `json:"version"`
	Statement SHA512 `json:"statement"`
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
	Version   int    `json:"version"`
	Statement SHA512 `json:"statement"`
	State     State  `json:"state"`
	Reason    string `json:"reason,omitempty"`
}

// injected vouches for the secrets that a SEV guest finds in its memory: its host packs none of
// its own beside it.
type injected struct {
	Version int               `json:"version"`
	Name    string            `json:"name"`
	Secrets map[string]SHA256 `json:"secrets"` // of the values
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
