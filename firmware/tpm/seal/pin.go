package seal

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
)

// MinPinned is how long a secret must be to have a pin, in bytes: shorter ones could be guessed
// from it.
const MinPinned = 16

const pinSize = 16

// ErrPin means that a secret is not the one that is pinned.
var ErrPin = errors.New("this is not the secret that the command line pins")

// Pin names a secret without telling it. On a measured command line it keeps out a foreign
// disk, whose secret was sealed to the same TPM too: that takes its public key alone.
func Pin(secret []byte) (string, error) {
	if len(secret) < MinPinned {
		return "", fmt.Errorf("%w: a secret of %d bytes could be guessed from its pin: %d are needed", ErrPolicy,
			len(secret), MinPinned)
	}
	m := hmac.New(sha256.New, secret)
	m.Write([]byte("vmlatch tpm pin v1"))
	return hex.EncodeToString(m.Sum(nil)[:pinSize]), nil
}

// IsPin reports whether text has the form of a pin.
func IsPin(text string) bool {
	b, err := hex.DecodeString(text)
	return err == nil && len(b) == pinSize
}

// CheckPin is an error unless a secret is the one that is pinned.
func CheckPin(secret []byte, pin string) error {
	got, err := Pin(secret)
	if err != nil || !hmac.Equal([]byte(got), []byte(pin)) {
		return ErrPin
	}
	return nil
}
