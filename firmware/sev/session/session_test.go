package session_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/internal/vectors"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/session"
	"github.com/vmlatch/vmlatch/firmware/sev/table"
)

func platform(t *testing.T) (*ecdsa.PrivateKey, *sev.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pdh, err := sev.NewCertificate(&key.PublicKey, sev.UsagePDH, sev.AlgoECDHSHA256, sev.Build{Major: 1, Minor: 55})
	if err != nil {
		t.Fatal(err)
	}
	return key, pdh
}

func TestSessionRoundTrip(t *testing.T) {
	key, pdh := platform(t)
	ecdhKey, _ := key.ECDH()
	s, err := session.New(rand.Reader, pdh, 3)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := session.Unwrap(ecdhKey, s.OwnerCert, s.Blob[:], 3)
	if err != nil {
		t.Fatal(err)
	}
	if keys.TEK != s.Keys.TEK || keys.TIK != s.Keys.TIK {
		t.Error("the platform unwraps other keys")
	}
	if _, err := session.Unwrap(ecdhKey, s.OwnerCert, s.Blob[:], 1); !errors.Is(err, session.ErrPolicyMAC) {
		t.Errorf("other policy: %v, want ErrPolicyMAC", err)
	}
	other, _ := platform(t)
	otherKey, _ := other.ECDH()
	if _, err := session.Unwrap(otherKey, s.OwnerCert, s.Blob[:], 3); !errors.Is(err, session.ErrWrapMAC) {
		t.Errorf("other platform: %v, want ErrWrapMAC", err)
	}
	for bit := range len(s.Blob) * 8 {
		blob := bytes.Clone(s.Blob[:])
		blob[bit/8] ^= 1 << (bit % 8)
		if _, err := session.Unwrap(ecdhKey, s.OwnerCert, blob, 3); err == nil {
			t.Fatalf("bit %d flipped, and the session still unwraps", bit)
		}
	}
}

// TestKDF pins the derivation to values of the SEV API's worked example as
// checked by sevctl: all-zero secret and nonce.
func TestKDF(t *testing.T) {
	const want = "ab4d269fcc62bedb4511d56c386ce706"
	got := hex.EncodeToString(session.KDF(make([]byte, 16), "sev-master-secret", make([]byte, 16)))
	if got != want {
		t.Errorf("master secret %s, want %s", got, want)
	}
}

func TestSecretVectors(t *testing.T) {
	vectors.Each(t, "sev-launch-secret", func(t *testing.T, v vectors.Vector) {
		var in struct {
			TIK, TEK      string
			LaunchMeasure string `json:"launch_measure_base64"`
			IV            string `json:"iv_base64"`
			Secrets       []struct{ GUID, File, Hex string }
		}
		v.In(t, &in)
		var want struct {
			Header  string `json:"header_base64"`
			Payload string `json:"payload_base64"`
		}
		v.Want(t, &want)
		var k session.Keys
		copy(k.TIK[:], unhex(t, in.TIK))
		copy(k.TEK[:], unhex(t, in.TEK))
		m, err := sev.ParseMeasurement(unbase64(t, in.LaunchMeasure))
		if err != nil {
			t.Fatal(err)
		}
		var entries []table.Entry
		for _, s := range in.Secrets {
			data := unhex(t, s.Hex)
			if s.File != "" {
				data = vectors.File(t, s.File)
			}
			entries = append(entries, table.Entry{GUID: sev.MustGUID(s.GUID), Data: data})
		}
		packed, err := table.Pack(entries)
		if err != nil {
			t.Fatal(err)
		}
		p, err := k.Seal(packed, [16]byte(unbase64(t, in.IV)), m)
		if err != nil {
			t.Fatal(err)
		}
		if got := base64.StdEncoding.EncodeToString(p.Data); got != want.Payload {
			t.Errorf("payload %s, want %s", got, want.Payload)
		}
		if got := base64.StdEncoding.EncodeToString(p.Header[:]); got != want.Header {
			t.Errorf("header %s, want %s", got, want.Header)
		}
	})
}

func TestPacketTampered(t *testing.T) {
	var k session.Keys
	_, _ = rand.Read(k.TIK[:])
	_, _ = rand.Read(k.TEK[:])
	var m sev.Measurement
	plain := bytes.Repeat([]byte("secret!!"), 4)
	p, err := k.Seal(plain, [16]byte{1}, m)
	if err != nil {
		t.Fatal(err)
	}
	got, err := k.Open(p, len(plain), m)
	if err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("opens to %q, %v", got, err)
	}
	for bit := range session.HeaderSize * 8 {
		bad := p
		bad.Header[bit/8] ^= 1 << (bit % 8)
		if _, err := k.Open(bad, len(plain), m); err == nil {
			t.Fatalf("header bit %d flipped, and the packet still opens", bit)
		}
	}
	if _, err := k.Open(p, len(plain)+16, m); !errors.Is(err, session.ErrPacketMAC) {
		t.Errorf("other length: %v", err)
	}
	m.MAC[0] ^= 1
	if _, err := k.Open(p, len(plain), m); !errors.Is(err, session.ErrPacketMAC) {
		t.Errorf("other measurement: %v", err)
	}
	for _, n := range []int{0, 15, 17, session.MaxSecret + 16} {
		if _, err := k.Seal(make([]byte, n), [16]byte{}, m); err == nil {
			t.Errorf("%d bytes are sealed", n)
		}
	}
}

func TestKeysNeverPrint(t *testing.T) {
	k := session.Keys{TEK: [16]byte([]byte("sixteen-byte-tek")), TIK: [16]byte([]byte("sixteen-byte-tik"))}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "keys", k)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "keys", k, "pointer", &k)
	encoded, err := json.Marshal(struct{ K session.Keys }{k})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		fmt.Sprint(k), fmt.Sprintf("%+v %#v %s", k, k, k), log.String(), string(encoded),
	} {
		if strings.Contains(text, "sixteen") || strings.Contains(text, "115") || !strings.Contains(text, "redacted") {
			t.Errorf("keys in the clear: %s", text)
		}
	}
	k.Wipe()
	if k.TEK != [16]byte{} || k.TIK != [16]byte{} {
		t.Error("Wipe leaves key bytes")
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func unbase64(t *testing.T, s string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
