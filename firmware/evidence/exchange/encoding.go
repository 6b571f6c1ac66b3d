package exchange

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// MaxLine is the longest message, in bytes, with the line's end.
const MaxLine = 256 << 10

// ErrMessage is wrapped by errors about messages that are not as the protocol has them.
var ErrMessage = errors.New("malformed message")

// encode writes a message as the protocol has it: compact, and without escapes for HTML.
func encode(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(err) // the types of this package have no value that cannot be encoded
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// decode reads a message, and refuses any other form of it than the one that encode writes: JSON
// has many forms of one value, and a signature or a hash must not mean two things.
func decode(b []byte, v any) error {
	if len(b) > MaxLine {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrMessage, len(b), MaxLine)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: it is not JSON of its kind", ErrMessage) // the decoder's words quote the message
	}
	if !bytes.Equal(encode(v), b) {
		return fmt.Errorf("%w: it is not in the one form that counts", ErrMessage)
	}
	return nil
}

// Bytes are base64 in messages (RFC 4648, section 4, with padding), and never null.
type Bytes []byte

// MarshalText writes base64.
func (b Bytes) MarshalText() ([]byte, error) { return base64.StdEncoding.AppendEncode(nil, b), nil }

// UnmarshalText reads base64.
func (b *Bytes) UnmarshalText(text []byte) (err error) {
	*b, err = base64.StdEncoding.AppendDecode(nil, text)
	return err
}

// Bytes16 and Bytes32 are base64 of their length.
type (
	Bytes16 [16]byte
	Bytes32 [32]byte
)

// MarshalText writes base64.
func (b Bytes16) MarshalText() ([]byte, error) { return Bytes(b[:]).MarshalText() }

// UnmarshalText reads base64 of 16 bytes.
func (b *Bytes16) UnmarshalText(text []byte) error { return fill(b[:], text) }

// MarshalText writes base64.
func (b Bytes32) MarshalText() ([]byte, error) { return Bytes(b[:]).MarshalText() }

// UnmarshalText reads base64 of 32 bytes.
func (b *Bytes32) UnmarshalText(text []byte) error { return fill(b[:], text) }

func fill(to, text []byte) error {
	raw, err := base64.StdEncoding.AppendDecode(nil, text)
	if err != nil || len(raw) != len(to) {
		return fmt.Errorf("%w: must be base64 of %d bytes", ErrMessage, len(to))
	}
	copy(to, raw)
	return nil
}

// SHA256 and SHA512 are hashes, in lower-case hex in messages.
type (
	SHA256 [32]byte
	SHA512 [64]byte
)

// String is the hash in hex.
func (h SHA256) String() string { return hex.EncodeToString(h[:]) }

// String is the hash in hex.
func (h SHA512) String() string { return hex.EncodeToString(h[:]) }

// MarshalText writes hex.
func (h SHA256) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText reads hex.
func (h *SHA256) UnmarshalText(text []byte) error { return unhex(h[:], text) }

// MarshalText writes hex.
func (h SHA512) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText reads hex.
func (h *SHA512) UnmarshalText(text []byte) error { return unhex(h[:], text) }

func unhex(to, text []byte) error {
	if len(text) != hex.EncodedLen(len(to)) {
		return fmt.Errorf("%w: must be a hash of %d bytes in hex", ErrMessage, len(to))
	}
	_, err := hex.Decode(to, text)
	return err
}
