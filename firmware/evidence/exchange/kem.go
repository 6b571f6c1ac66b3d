package exchange

import (
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/hpke"
	"crypto/sha256"
	"crypto/sha512"
	"slices"

	"github.com/vmlatch/vmlatch/firmware/smallfmt"
)

// Key encapsulation mechanisms (RFC 9180, section 7.1; draft-ietf-hpke-pq).
const (
	Hybrid = "mlkem768-x25519" // 0x647a
	X25519 = "x25519"          // 0x20; only where a policy names it
)

func kemNamed(name string) (hpke.KEM, error) {
	switch name {
	case Hybrid:
		return hpke.MLKEM768X25519(), nil
	case X25519:
		return hpke.DHKEM(ecdh.X25519()), nil
	}
	return nil, smallfmt.Errorf("%w: unknown kem", ErrMessage)
}

// info binds a ciphertext to the statement that it answers.
func info(statement SHA512) []byte {
	return slices.Concat([]byte("vmlatch release v1\x00"), statement[:])
}

// exporter is the context of a key that only the two ends have.
const exporter = "vmlatch receipt v1"

// receiptMAC shows that a release was opened, to the broker that made it.
func receiptMAC(key, release []byte) (mac [32]byte) {
	sum := sha512.Sum512(release)
	m := hmac.New(sha256.New, key)
	m.Write(sum[:])
	copy(mac[:], m.Sum(nil))
	return mac
}

// sender prepares to seal to a statement's key. What is not a key, and those of low order,
// are refused.
func sender(s *Statement, hash SHA512) (enc []byte, to *hpke.Sender, err error) {
	k, err := kemNamed(s.KEM)
	if err != nil {
		return nil, nil, err
	}
	pub, err := k.NewPublicKey(s.Key)
	if err == nil {
		enc, to, err = hpke.NewSender(pub, hpke.HKDFSHA256(), hpke.AES256GCM(), info(hash))
	}
	if err != nil {
		return nil, nil, smallfmt.Errorf("%w: statement: not a key of %s", ErrMessage, s.KEM)
	}
	return enc, to, nil
}
