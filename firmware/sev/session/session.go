// Package session holds what only the owner of a guest may know: the keys TEK
// and TIK, the session that carries them to a platform, the check of a launch
// measurement, and the packet that carries a secret into the guest.
//
// vmlatch, which runs on the host, never links this package; latchkey and the
// emulated platform do. Start with [New] on the owner's side and [Unwrap] on
// the platform's. All secret bytes live in [Keys]; wipe them after use.
//
// Sources: SEV API (AMD publication 55766), chapter 6.2 (LAUNCH_START),
// 6.5 (LAUNCH_MEASURE), 6.6 (LAUNCH_SECRET) and chapter 2 (key derivation);
// OVMF and Linux drivers/virt/coco/efi_secret for the secret table.
package session

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/vmlatch/vmlatch/firmware/sev"
)

// BlobSize is the length of a session: nonce 16, wrapped keys 32, IV 16, MAC
// of the wrapped keys 32, MAC of the policy 32 (SEV API, chapter 6.2, table 44).
const BlobSize = sev.SessionSize

const (
	offNonce     = 0
	offWrapped   = 16
	offIV        = 48
	offWrapMAC   = 64
	offPolicyMAC = 96
)

// Errors that Unwrap tells apart; the platform answers both with BAD_MEASUREMENT.
var (
	ErrWrapMAC   = errors.New("session: made for another platform's key")
	ErrPolicyMAC = errors.New("session: made for another policy")
)

// Keys are the transport keys that an owner shares with a platform.
type Keys struct {
	TEK [16]byte // encrypts secrets on their way
	TIK [16]byte // authenticates measurements and secrets
}

// Wipe overwrites the keys.
func (k *Keys) Wipe() { clear(k.TEK[:]); clear(k.TIK[:]) }

// MarshalText keeps the keys out of logs (log/slog) and out of JSON.
func (k Keys) MarshalText() ([]byte, error) { return []byte("[redacted]"), nil }

// String keeps the keys out of formatted text.
func (k Keys) String() string { return "[redacted]" }

// GoString keeps the keys out of formatted text.
func (k Keys) GoString() string { return "[redacted]" }

// Session is one owner's session for one launch on one platform.
type Session struct {
	OwnerCert *sev.Certificate // the owner's Diffie-Hellman key, "godh"
	Blob      [BlobSize]byte
	Keys      Keys
}

// New makes fresh keys and wraps them for the platform whose PDH is given; the
// policy is bound into the session.
func New(rand io.Reader, pdh *sev.Certificate, policy sev.Policy) (*Session, error) {
	if err := policy.Check(); err != nil {
		return nil, err
	}
	priv, err := ecdsa.GenerateKey(elliptic.P384(), rand)
	if err != nil {
		return nil, fmt.Errorf("session: %w", err)
	}
	s := &Session{}
	s.OwnerCert, err = sev.NewCertificate(&priv.PublicKey, sev.UsagePDH, sev.AlgoECDHSHA256, sev.Build{})
	if err != nil {
		return nil, err
	}
	own, err := priv.ECDH()
	if err != nil {
		return nil, fmt.Errorf("session: %w", err)
	}
	for _, b := range [][]byte{s.Keys.TEK[:], s.Keys.TIK[:], s.Blob[offNonce:offWrapped], s.Blob[offIV:offWrapMAC]} {
		if _, err := io.ReadFull(rand, b); err != nil {
			return nil, fmt.Errorf("session: %w", err)
		}
	}
	kek, kik, err := wrapKeys(own, pdh, s.Blob[offNonce:offWrapped])
	if err != nil {
		return nil, err
	}
	defer func() { clear(kek); clear(kik) }()
	plain := slices.Concat(s.Keys.TEK[:], s.Keys.TIK[:])
	defer clear(plain)
	ctr(kek, s.Blob[offIV:offWrapMAC], plain, s.Blob[offWrapped:offIV])
	copy(s.Blob[offWrapMAC:], mac(kik, s.Blob[offWrapped:offIV]))
	copy(s.Blob[offPolicyMAC:], mac(s.Keys.TIK[:], policyBytes(policy)))
	return s, nil
}

// Unwrap is the platform's side of New: it recovers the keys with the PDH's
// private key and checks both MACs.
func Unwrap(pdh *ecdh.PrivateKey, owner *sev.Certificate, blob []byte, policy sev.Policy) (Keys, error) {
	var k Keys
	if len(blob) != BlobSize {
		return k, fmt.Errorf("session: %d bytes, must be %d", len(blob), BlobSize)
	}
	kek, kik, err := wrapKeys(pdh, owner, blob[offNonce:offWrapped])
	if err != nil {
		return k, err
	}
	defer func() { clear(kek); clear(kik) }()
	if !hmac.Equal(mac(kik, blob[offWrapped:offIV]), blob[offWrapMAC:offPolicyMAC]) {
		return k, ErrWrapMAC
	}
	plain := make([]byte, 32)
	defer clear(plain)
	ctr(kek, blob[offIV:offWrapMAC], blob[offWrapped:offIV], plain)
	copy(k.TEK[:], plain)
	copy(k.TIK[:], plain[16:])
	if !hmac.Equal(mac(k.TIK[:], policyBytes(policy)), blob[offPolicyMAC:]) {
		k.Wipe()
		return k, ErrPolicyMAC
	}
	return k, nil
}

// LaunchMAC is the MAC of a launch measurement (SEV API, chapter 6.5.2):
// HMAC-SHA-256 under the TIK of 0x04, API version, build, policy, launch digest
// and nonce.
func (k *Keys) LaunchMAC(b sev.Build, p sev.Policy, digest [32]byte, nonce [16]byte) [32]byte {
	return [32]byte(mac(k.TIK[:], []byte{4, b.Major, b.Minor, b.Build}, policyBytes(p), digest[:], nonce[:]))
}

// Verifies reports whether the measurement is of the digest.
func (k *Keys) Verifies(m sev.Measurement, b sev.Build, p sev.Policy, digest [32]byte) bool {
	want := k.LaunchMAC(b, p, digest, m.Nonce)
	return hmac.Equal(want[:], m.MAC[:])
}

// wrapKeys derives KEK and KIK from the Diffie-Hellman secret and the session's
// nonce (SEV API, chapter 2.2.2 and 6.2.2).
func wrapKeys(own *ecdh.PrivateKey, peer *sev.Certificate, nonce []byte) (kek, kik []byte, err error) {
	if peer.Usage != sev.UsagePDH {
		return nil, nil, fmt.Errorf("session: a %v certificate where a PDH belongs", peer.Usage)
	}
	pub, err := peer.Key.ECDH()
	if err != nil {
		return nil, nil, fmt.Errorf("session: %w", err)
	}
	shared, err := own.ECDH(pub)
	if err != nil {
		return nil, nil, fmt.Errorf("session: %w", err)
	}
	defer clear(shared)
	master := kdf(shared, "sev-master-secret", nonce)
	defer clear(master)
	return kdf(master, "sev-kek", nil), kdf(master, "sev-kik", nil), nil
}

// kdf is NIST SP 800-108 in counter mode with HMAC-SHA-256, 128 bits out: one
// round of counter, label, zero, context, length in bits, numbers little-endian.
func kdf(key []byte, label string, context []byte) []byte {
	const size = 16
	return mac(key, []byte{1, 0, 0, 0}, []byte(label), []byte{0}, context, []byte{size * 8, 0, 0, 0})[:size]
}

func mac(key []byte, parts ...[]byte) []byte {
	m := hmac.New(sha256.New, key)
	for _, p := range parts {
		m.Write(p)
	}
	return m.Sum(nil)
}

// ctr is AES-128 in counter mode; it reads in and writes out.
func ctr(key, iv, in, out []byte) {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // only for other key lengths, which the types exclude
	}
	cipher.NewCTR(block, iv).XORKeyStream(out, in)
}

func policyBytes(p sev.Policy) []byte { return binary.LittleEndian.AppendUint32(nil, uint32(p)) }
