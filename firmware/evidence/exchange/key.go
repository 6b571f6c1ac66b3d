package exchange

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/smallfmt"
)

// ErrKey is wrapped by errors about keys of brokers.
var ErrKey = errors.New("broker key")

// Key is a broker's public key (Ed25519), as guests pin it.
type Key [ed25519.PublicKeySize]byte

const keyPrefix = "ed25519:"

// ParseKey reads ed25519: and 43 characters of base64url, without padding.
func ParseKey(text string) (k Key, err error) {
	raw, ok := strings.CutPrefix(text, keyPrefix)
	if !ok {
		return k, smallfmt.Errorf("%w: must begin with %s", ErrKey, keyPrefix)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(raw)
	if err != nil || len(b) != len(k) || strings.ContainsAny(raw, "\r\n") {
		return k, smallfmt.Errorf("%w: must be %s and 43 characters of base64url", ErrKey, keyPrefix)
	}
	copy(k[:], b)
	if k.smallOrder() {
		return Key{}, smallfmt.Errorf("%w: it is of small order, so that any host could sign in its name", ErrKey)
	}
	return k, nil
}

// String is the key as ParseKey reads it.
func (k Key) String() string { return keyPrefix + base64.RawURLEncoding.EncodeToString(k[:]) }

// smallOrder are the encodings of the points whose order is 1, 2, 4 or 8, but for the sign bit:
// y is 0, 1, -1 and two roots, and p and p+1 are other forms of 0 and 1 (RFC 8032, section 5.1.3,
// does not refuse them).
var smallOrder = [...]string{
	"0000000000000000000000000000000000000000000000000000000000000000",
	"0100000000000000000000000000000000000000000000000000000000000000",
	"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
	"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
}

func (k Key) smallOrder() bool {
	k[31] &= 0x7f
	for _, text := range smallOrder {
		if b, err := smallfmt.Unhex(text); err != nil || bytes.Equal(b, k[:]) {
			return true
		}
	}
	return false
}

// kind is what an envelope holds. The broker's key signs nothing else.
type kind string

const (
	kindChallenge kind = "challenge"
	kindRelease   kind = "release"
	kindDenial    kind = "denial"
	kindPending   kind = "pending"
	kindStatus    kind = "status"
	kindSession   kind = "session"
	kindPacket    kind = "packet"
	kindInjected  kind = "injected"
)

func (k kind) payloadType() string { return "application/vnd.vmlatch." + string(k) + "+json" }

// Envelope is a signed payload (DSSE, protocol.md).
type Envelope struct {
	PayloadType string
	Payload     []byte
	Signature   []byte // Ed25519, 64 bytes
}

func (m *Envelope) code(c *codec) {
	c.text("payloadType", &m.PayloadType)
	c.blob("payload", &m.Payload)
	c.blob("signature", &m.Signature)
}

// pae is what is signed: DSSE's pre-authentication encoding.
func pae(k kind, payload []byte) []byte {
	t := k.payloadType()
	return append([]byte(smallfmt.Sprintf("DSSEv1 %d %s %d ", len(t), t, len(payload))), payload...)
}

func sign(key ed25519.PrivateKey, k kind, payload message) *Envelope {
	b := encode(payload)
	return &Envelope{PayloadType: k.payloadType(), Payload: b, Signature: ed25519.Sign(key, pae(k, b))}
}

// ErrSignature is wrapped by errors about envelopes that another key has signed, or as something
// else.
var ErrSignature = errors.New("not signed by the broker")

// open verifies an envelope and decodes its payload.
func (e *Envelope) open(k Key, want kind, payload message) error {
	if e.PayloadType != want.payloadType() {
		return smallfmt.Errorf("%w as a %s", ErrSignature, string(want))
	}
	if len(e.Signature) != ed25519.SignatureSize || !ed25519.Verify(k[:], pae(want, e.Payload), e.Signature) {
		return smallfmt.Errorf("%w with the key %s", ErrSignature, k.String())
	}
	return decode(e.Payload, payload)
}
