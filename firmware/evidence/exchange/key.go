package exchange

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
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
		return k, fmt.Errorf("%w: must begin with %s", ErrKey, keyPrefix)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(raw)
	if err != nil || len(b) != len(k) || strings.ContainsAny(raw, "\r\n") {
		return k, fmt.Errorf("%w: must be %s and 43 characters of base64url", ErrKey, keyPrefix)
	}
	copy(k[:], b)
	if k.smallOrder() {
		return Key{}, fmt.Errorf("%w: it is of small order, so that anybody could sign in its name", ErrKey)
	}
	return k, nil
}

// String is the key as ParseKey reads it.
func (k Key) String() string { return keyPrefix + base64.RawURLEncoding.EncodeToString(k[:]) }

// MarshalText writes the key as String does.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads the key as ParseKey does.
func (k *Key) UnmarshalText(text []byte) (err error) {
	*k, err = ParseKey(string(text))
	return err
}

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
		if b, err := hex.DecodeString(text); err != nil || bytes.Equal(b, k[:]) {
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
	PayloadType string `json:"payloadType"`
	Payload     Bytes  `json:"payload"`
	Signature   Bytes  `json:"signature"` // Ed25519, 64 bytes
}

// pae is what is signed: DSSE's pre-authentication encoding.
func pae(k kind, payload []byte) []byte {
	t := k.payloadType()
	return append(fmt.Appendf(nil, "DSSEv1 %d %s %d ", len(t), t, len(payload)), payload...)
}

func sign(key ed25519.PrivateKey, k kind, payload any) *Envelope {
	b := encode(payload)
	return &Envelope{PayloadType: k.payloadType(), Payload: b, Signature: ed25519.Sign(key, pae(k, b))}
}

// ErrSignature is wrapped by errors about envelopes that another key has signed, or as something
// else.
var ErrSignature = errors.New("not signed by the broker")

// open verifies an envelope and decodes its payload.
func (e *Envelope) open(k Key, want kind, payload any) error {
	if e.PayloadType != want.payloadType() {
		return fmt.Errorf("%w as a %s", ErrSignature, want)
	}
	if len(e.Signature) != ed25519.SignatureSize || !ed25519.Verify(k[:], pae(want, e.Payload), e.Signature) {
		return fmt.Errorf("%w with the key %s", ErrSignature, k)
	}
	return decode(e.Payload, payload)
}
