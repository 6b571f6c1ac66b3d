package keyring

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
)

// Type is a type of key (keyrings(7)).
type Type string

// Types of keys.
const (
	User      Type = "user"  // a payload that programs can read
	Logon     Type = "logon" // one that only the kernel can
	Encrypted Type = "encrypted"
	Trusted   Type = "trusted"
	TypeMKTME Type = "mktme" // Intel's, in no released Linux
)

// MKTME describes a key of type mktme (Linux, RFC "Intel MKTME enabling" v2,
// Documentation/x86/mktme/mktme_keys.rst).
type MKTME struct {
	Source MKTMESource
	// Key and Tweak have 16 bytes each: the key itself for FromUser, entropy that
	// may be left out for FromCPU.
	Key, Tweak []byte
}

// MKTMESource says where the bytes of an MKTME key come from.
type MKTMESource string

// Sources of MKTME keys.
const (
	FromCPU   MKTMESource = "cpu"        // the processor makes one that nobody sees
	FromUser  MKTMESource = "user"       // the caller brings one
	NoEncrypt MKTMESource = "no-encrypt" // a key ID without encryption
)

// MKTMEAlgorithm is the only one that the processors have.
const MKTMEAlgorithm = "aes-xts-128"

// mktmeKeySize is the length of key and tweak in bytes.
const mktmeKeySize = 16

// Payload writes what add_key takes. The caller wipes it.
func (m MKTME) Payload() ([]byte, error) {
	none := len(m.Key) == 0 && len(m.Tweak) == 0
	whole := len(m.Key) == mktmeKeySize && len(m.Tweak) == mktmeKeySize
	switch m.Source {
	case NoEncrypt:
		if !none {
			return nil, errors.New("mktme key: no-encrypt takes no key and no tweak")
		}
		return []byte("type=no-encrypt"), nil
	case FromUser:
		if !whole {
			return nil, fmt.Errorf("mktme key: key and tweak must have %d bytes each", mktmeKeySize)
		}
	case FromCPU:
		if !none && !whole {
			return nil, fmt.Errorf("mktme key: key and tweak must have %d bytes each, or be left out", mktmeKeySize)
		}
	default:
		return nil, fmt.Errorf("mktme key: source %q must be cpu, user or no-encrypt", m.Source)
	}
	b := []byte("type=" + string(m.Source) + " algorithm=" + MKTMEAlgorithm)
	if whole {
		b = slices.Grow(b, 2*len(" tweak=")+4*mktmeKeySize) // in place: no copy stays behind
		b = hex.AppendEncode(append(b, " key="...), m.Key)
		b = hex.AppendEncode(append(b, " tweak="...), m.Tweak)
	}
	return b, nil
}

// Wipe overwrites bytes.
func Wipe(b []byte) { clear(b) }
