package keyring

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
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
	FromCPU   MKTMESource = "cpu"        // the processor makes one that no program sees
	FromUser  MKTMESource = "user"       // the caller brings one
	NoEncrypt MKTMESource = "no-encrypt" // a key ID without encryption
)

// MKTMEAlgorithm is the only one that the processors have.
const MKTMEAlgorithm = "aes-xts-128"

// mktmeKeySize is the length of key and tweak in bytes.
const mktmeKeySize = 16

func (m *MKTME) check() error {
	none := len(m.Key) == 0 && len(m.Tweak) == 0
	whole := len(m.Key) == mktmeKeySize && len(m.Tweak) == mktmeKeySize
	switch {
	case m.Source != NoEncrypt && m.Source != FromUser && m.Source != FromCPU:
		return errors.New("mktme key: its source must be cpu, user or no-encrypt")
	case m.Source == NoEncrypt && !none:
		return errors.New("mktme key: no-encrypt takes no key and no tweak")
	case m.Source == FromUser && !whole:
		return fmt.Errorf("mktme key: key and tweak must have %d bytes each", mktmeKeySize)
	case m.Source == FromCPU && !none && !whole:
		return fmt.Errorf("mktme key: key and tweak must have %d bytes each, or be left out", mktmeKeySize)
	}
	return nil
}

// Payload writes what add_key takes. The caller wipes it.
func (m MKTME) Payload() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	b := []byte("type=" + string(m.Source))
	if m.Source == NoEncrypt {
		return b, nil
	}
	b = append(b, " algorithm="+MKTMEAlgorithm...)
	if len(m.Key) > 0 {
		b = slices.Grow(b, len(" key=")+len(" tweak=")+4*mktmeKeySize) // in place: no copy stays behind
		b = hex.AppendEncode(append(b, " key="...), m.Key)
		b = hex.AppendEncode(append(b, " tweak="...), m.Tweak)
	}
	return b, nil
}

var mktmeWords = []string{"type", "algorithm", "key", "tweak"}

// ParseMKTME reads what Payload writes, in any order of its words. Errors show
// nothing of the key; the caller wipes the result's.
func ParseMKTME(payload []byte) (m MKTME, err error) {
	defer func() {
		if err != nil {
			Wipe(m.Key)
			Wipe(m.Tweak)
			m = MKTME{}
		}
	}()
	seen := map[string]bool{}
	for _, word := range bytes.Fields(payload) {
		name, value, ok := bytes.Cut(word, []byte("="))
		i := slices.IndexFunc(mktmeWords, func(w string) bool {
			return ok && string(name) == w // a comparison makes no copy
		})
		if i < 0 {
			return m, errors.New("mktme key: its payload must be of type=, algorithm=, key= and tweak=")
		}
		key := mktmeWords[i]
		if seen[key] {
			return m, fmt.Errorf("mktme key: %s= is given twice", key)
		}
		seen[key] = true
		switch key {
		case "type":
			m.Source = MKTMESource(value)
		case "algorithm":
			if string(value) != MKTMEAlgorithm {
				return m, fmt.Errorf("mktme key: its algorithm must be %s", MKTMEAlgorithm)
			}
		case "key":
			m.Key, err = unhex(value)
		case "tweak":
			m.Tweak, err = unhex(value)
		}
		if err != nil {
			return m, fmt.Errorf("mktme key: %s= must be %d digits of hex", key, 2*mktmeKeySize)
		}
	}
	if err := m.check(); err != nil {
		return m, err
	}
	if seen["algorithm"] == (m.Source == NoEncrypt) {
		return m, errors.New("mktme key: cpu and user need an algorithm, no-encrypt takes none")
	}
	return m, nil
}

// checkMKTME keeps nothing of the key that it has read.
func checkMKTME(b []byte) error {
	m, err := ParseMKTME(b)
	Wipe(m.Key)
	Wipe(m.Tweak)
	return err
}

// unhex decodes a key; its error must not show it.
func unhex(b []byte) ([]byte, error) {
	out := make([]byte, mktmeKeySize)
	if len(b) != 2*mktmeKeySize {
		return nil, hex.ErrLength
	}
	_, err := hex.Decode(out, b)
	return out, err
}
