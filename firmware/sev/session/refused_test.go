package session_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/session"
)

func pdhOf(t *testing.T, usage sev.Usage) (*ecdsa.PrivateKey, *sev.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := sev.NewCertificate(&key.PublicKey, usage, sev.AlgoECDHSHA256, sev.Build{})
	if err != nil {
		t.Fatal(err)
	}
	return key, cert
}

// TestSessionRefused: what is wrong with a session is told apart, and no keys come
// with the error.
func TestSessionRefused(t *testing.T) {
	const policy = sev.PolicyNoDebug
	key, pdh := pdhOf(t, sev.UsagePDH)
	own, err := key.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	s, err := session.New(rand.Reader, pdh, policy)
	if err != nil {
		t.Fatal(err)
	}
	if k, err := session.Unwrap(own, s.OwnerCert, s.Blob[:], policy); err != nil || k != s.Keys {
		t.Fatalf("unwraps to other keys, %v", err)
	}
	_, pek := pdhOf(t, sev.UsagePEK)
	flipped := slices.Clone(s.Blob[:])
	flipped[64] ^= 1
	for name, c := range map[string]struct {
		owner  *sev.Certificate
		blob   []byte
		policy sev.Policy
		want   error
	}{
		"policy":        {s.OwnerCert, s.Blob[:], policy | 2, session.ErrPolicyMAC},
		"MAC":           {s.OwnerCert, flipped, policy, session.ErrWrapMAC},
		"owner":         {pdh, s.Blob[:], policy, session.ErrWrapMAC},
		"usage":         {pek, s.Blob[:], policy, nil},
		"too short":     {s.OwnerCert, s.Blob[:127], policy, nil},
		"one byte more": {s.OwnerCert, append(s.Blob[:], 0), policy, nil},
	} {
		k, err := session.Unwrap(own, c.owner, c.blob, c.policy)
		if err == nil || c.want != nil && !errors.Is(err, c.want) || k != (session.Keys{}) {
			t.Errorf("%s: %v and keys %t, want %v and no keys", name, err, k != (session.Keys{}), c.want)
		}
	}
	if _, err := session.New(rand.Reader, pek, policy); err == nil {
		t.Error("a session for a PEK, want an error")
	}
	if _, err := session.New(rand.Reader, pdh, 0x40); !errors.Is(err, sev.ErrPolicyReserved) {
		t.Errorf("a reserved policy bit: %v, want ErrPolicyReserved", err)
	}
	if _, err := session.New(iotest.ErrReader(errors.New("no randomness")), pdh, policy); err == nil {
		t.Error("a session without randomness, want an error")
	}
	other, err := session.New(rand.Reader, pdh, policy)
	if err != nil {
		t.Fatal(err)
	}
	if other.Keys == s.Keys || other.Keys.TEK == other.Keys.TIK || bytes.Equal(other.Blob[:32], s.Blob[:32]) {
		t.Error("two sessions share keys or a nonce")
	}
}

// TestVerifies: each part of what the MAC covers counts.
func TestVerifies(t *testing.T) {
	k := session.Keys{TIK: [16]byte{1}}
	build, policy, digest := sev.Build{Major: 1, Minor: 55, Build: 3}, sev.Policy(3), [32]byte{4}
	m := sev.Measurement{Nonce: [16]byte{5}}
	m.MAC = k.LaunchMAC(build, policy, digest, m.Nonce)
	if !k.Verifies(m, build, policy, digest) {
		t.Error("the right measurement does not verify")
	}
	type measured struct {
		keys   session.Keys
		seen   sev.Measurement
		build  sev.Build
		policy sev.Policy
		digest [32]byte
	}
	for name, edit := range map[string]func(*measured){
		"key":    func(m *measured) { m.keys.TIK[15]++ },
		"MAC":    func(m *measured) { m.seen.MAC[31]++ },
		"nonce":  func(m *measured) { m.seen.Nonce[15]++ },
		"major":  func(m *measured) { m.build.Major++ },
		"minor":  func(m *measured) { m.build.Minor++ },
		"build":  func(m *measured) { m.build.Build++ },
		"policy": func(m *measured) { m.policy ^= 1 << 31 },
		"digest": func(m *measured) { m.digest[31]++ },
	} {
		c := measured{k, m, build, policy, digest}
		if edit(&c); c.keys.Verifies(c.seen, c.build, c.policy, c.digest) {
			t.Errorf("another %s verifies", name)
		}
	}
}

func TestPacketBounds(t *testing.T) {
	k := session.Keys{TEK: [16]byte{1}, TIK: [16]byte{2}}
	var m sev.Measurement
	plain := bytes.Repeat([]byte{9}, session.MaxSecret)
	p, err := k.Seal(plain, [16]byte{3}, m)
	if err != nil {
		t.Fatalf("the largest secret: %v", err)
	}
	if got, err := k.Open(p, len(plain), m); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("opens to %d other bytes, %v", len(got), err)
	}
	if bytes.Equal(p.Data[:16], plain[:16]) || bytes.Equal(p.Data[:16], p.Data[16:32]) {
		t.Error("the secret is not encrypted with a counter")
	}
	other := k
	other.TIK[0]++
	if _, err := other.Open(p, len(plain), m); !errors.Is(err, session.ErrPacketMAC) {
		t.Errorf("with other keys: %v, want ErrPacketMAC", err)
	}
}
