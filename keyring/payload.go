package keyring

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Type is a type of key (keyrings(7)).
type Type string

// Types of keys.
const (
	User      Type = "user"      // a payload that programs can read
	Logon     Type = "logon"     // one that only the kernel can
	Encrypted Type = "encrypted" // made by the kernel, leaves it only under a master key
	Trusted   Type = "trusted"   // made by the kernel, leaves it only sealed to a TPM
	TypeMKTME Type = "mktme"     // Intel's, in no released Linux
)

// Limits of the kernel (add_key(2); security/keys/user_defined.c,
// encrypted-keys/encrypted.c, trusted-keys/trusted_core.c).
const (
	maxDescription = 4095
	maxPayload     = 32767
	maxTextPayload = 1 << 16 // a text with hex in it; the kernel's own is 1 MiB - 1

	minEncryptedSize, maxEncryptedSize = 20, 4096
	ecryptfsSize, enc32Size            = 64, 32
	minTrustedSize, maxTrustedSize     = 32, 128
)

// Check says what the kernel would refuse of a new key, without its payload in the
// error: the kernel answers EINVAL to all of it.
func Check(t Type, description string, payload []byte) error {
	switch {
	case description == "" || len(description) > maxDescription || strings.ContainsRune(description, 0):
		return fmt.Errorf("%s key: its description must have 1 to %d bytes, none of them zero", t, maxDescription)
	case len(payload) == 0:
		return fmt.Errorf("%s key: its payload is empty", t)
	}
	limit, check := maxPayload, func([]byte) error { return nil }
	switch t {
	case User:
	case Logon:
		if prefix, _, ok := strings.Cut(description, ":"); !ok || prefix == "" {
			return errors.New("logon key: its description must be SERVICE:NAME")
		}
	case Encrypted:
		limit, check = maxTextPayload, checkEncrypted
	case Trusted:
		limit, check = maxTextPayload, checkTrusted
	case TypeMKTME:
		limit, check = maxTextPayload, checkMKTME
	default:
		return nil // a type that only the kernel knows
	}
	if len(payload) > limit {
		return fmt.Errorf("%s key: its payload has %d bytes, at most %d are possible", t, len(payload), limit)
	}
	return check(payload)
}

// checkEncrypted looks at the commands that make an encrypted key (Linux,
// Documentation/security/keys/trusted-encrypted.rst):
//
//	new [FORMAT] user|trusted:MASTER SIZE [DATA IN HEX]
//	load [FORMAT] user|trusted:MASTER SIZE BLOB
func checkEncrypted(b []byte) error {
	w := words(b)
	command := w.next()
	if command != "new" && command != "load" {
		return errors.New("encrypted key: its payload must begin with new or load")
	}
	format, master := "default", w.next()
	if !strings.Contains(master, ":") {
		format, master = master, w.next()
	}
	if kind, name, _ := strings.Cut(master, ":"); kind != string(User) && kind != string(Trusted) || name == "" {
		return errors.New("encrypted key: its master key must be user:NAME or trusted:NAME")
	}
	size, err := strconv.Atoi(w.next())
	switch {
	case err != nil:
		return errors.New("encrypted key: its size is not a number")
	case format == "default" && (size < minEncryptedSize || size > maxEncryptedSize):
		return fmt.Errorf("encrypted key: its size must be %d to %d bytes, not %d",
			minEncryptedSize, maxEncryptedSize, size)
	case format == "ecryptfs" && size != ecryptfsSize, format == "enc32" && size != enc32Size:
		return fmt.Errorf("encrypted key: format %s has keys of %d or %d bytes, not %d",
			format, ecryptfsSize, enc32Size, size)
	case format != "default" && format != "ecryptfs" && format != "enc32":
		return errors.New("encrypted key: its format must be default, ecryptfs or enc32")
	}
	return w.blob("encrypted key", command == "load")
}

// checkTrusted looks at the commands that make a trusted key: new SIZE [OPTIONS],
// load BLOB [OPTIONS].
func checkTrusted(b []byte) error {
	w := words(b)
	switch w.next() {
	case "new":
		size, err := strconv.Atoi(w.next())
		if err != nil || size < minTrustedSize || size > maxTrustedSize {
			return fmt.Errorf("trusted key: its size must be a number, %d to %d bytes", minTrustedSize, maxTrustedSize)
		}
		return w.options("trusted key")
	case "load":
		if !w.hex() {
			return errors.New("trusted key: its blob is not hex")
		}
		return w.options("trusted key")
	}
	return errors.New("trusted key: its payload must begin with new or load")
}

// wordList takes a payload apart without a copy of it: words of it are secret.
type wordList struct{ b [][]byte }

func words(b []byte) *wordList { return &wordList{bytes.Fields(b)} }

// next is the next word, which must not be secret; "" at the end.
func (w *wordList) next() string {
	if len(w.b) == 0 {
		return ""
	}
	s := string(w.b[0])
	w.b = w.b[1:]
	return s
}

// hex takes a word of hex.
func (w *wordList) hex() bool {
	if len(w.b) == 0 || len(w.b[0]) == 0 || len(w.b[0])%2 != 0 {
		return false
	}
	ok := !bytes.ContainsFunc(w.b[0], func(r rune) bool { return !strings.ContainsRune("0123456789abcdefABCDEF", r) })
	w.b = w.b[1:]
	return ok
}

// blob takes what may follow, and nothing behind it.
func (w *wordList) blob(what string, needed bool) error {
	if (needed || len(w.b) > 0) && !w.hex() {
		return errors.New(what + ": its blob is not hex")
	}
	if len(w.b) > 0 {
		return errors.New(what + ": there is something behind its blob")
	}
	return nil
}

func (w *wordList) options(what string) error {
	if slices.ContainsFunc(w.b, func(o []byte) bool { return bytes.IndexByte(o, '=') < 1 }) {
		return errors.New(what + ": its options must be NAME=VALUE")
	}
	return nil
}

// Wipe overwrites bytes.
func Wipe(b []byte) { clear(b) }
