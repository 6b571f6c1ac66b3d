package session_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
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

// TestTableRefused: lengths beyond the table, and bytes behind its last entry.
func TestTableRefused(t *testing.T) {
	a, b := session.GUIDDiskPassphrase, sev.MustGUID("736869e5-aaaa-4973-92ec-06879ce3da0b")
	good, err := session.PackTable(
		[]session.Entry{{GUID: a, Data: []byte("0123456789")}, {GUID: b, Data: []byte("x")}},
	)
	if err != nil {
		t.Fatal(err)
	}
	const header, first = 20, 30 // bytes of a header, and of the first entry with it
	total := binary.LittleEndian.Uint32(good[16:])
	if total != header+first+header+1 || len(good) != 80 {
		t.Fatalf("table of %d bytes in %d, want 71 in 80", total, len(good))
	}
	put := func(at int, v uint32) []byte {
		t := slices.Clone(good)
		binary.LittleEndian.PutUint32(t[at:], v)
		return t
	}
	for name, c := range map[string]struct {
		table []byte
		say   string
	}{
		"nothing":                   {nil, "none here"},
		"19 bytes":                  {good[:19], "none here"},
		"another GUID":              {put(0, 1), "none here"},
		"total below the header":    {put(16, header-1), "length 19 does not fit"},
		"total beyond the bytes":    {put(16, 81), "length 81 does not fit"},
		"cut off":                   {good[:total-1], "does not fit"},
		"bytes behind the last":     {put(16, total+9), "9 bytes after the last entry"},
		"entry below its header":    {put(header+16, header-1), "length 19 leaves the table"},
		"entry beyond the table":    {put(header+16, total-header+1), "leaves the table"},
		"last beyond the table":     {put(header+first+16, header+2), "length 22 leaves the table"},
		"half a header behind":      {put(16, header+first+header-1), "19 bytes after the last entry"},
		"length of 4 GiB":           {put(header+16, 1<<32-1), "leaves the table"},
		"total of 4 GiB":            {put(16, 1<<32-1), "does not fit"},
		"first takes all but bytes": {put(header+16, total-header-3), "3 bytes after the last entry"},
	} {
		t.Run(name, func(t *testing.T) {
			entries, err := session.ParseTable(c.table)
			if !errors.Is(err, session.ErrTable) || !strings.Contains(err.Error(), c.say) || entries != nil {
				t.Errorf("%d entries, %v, want none and ErrTable with %q", len(entries), err, c.say)
			}
		})
	}
	if entries, err := session.ParseTable(put(16, header)[:header]); err != nil || len(entries) != 0 {
		t.Errorf("a table without entries: %v, %v, want none and nil", entries, err)
	}
	if entries, err := session.ParseTable(put(header+16, total-header)); err != nil || len(entries) != 1 ||
		len(entries[0].Data) != int(total)-2*header {
		t.Errorf("an entry up to the table's end: %v, %v, want it", entries, err)
	}
	if entries, err := session.ParseTable(good[:total]); err != nil || len(entries) != 2 ||
		string(entries[1].Data) != "x" {
		t.Errorf("without padding: %v, %v, want both entries", entries, err)
	}
}

func TestPackTableRefused(t *testing.T) {
	table, zero := sev.MustGUID("1e74f542-71dd-4d66-963e-ef4287ff173b"), sev.GUID{}
	a := session.GUIDDiskPassphrase
	for name, entries := range map[string][]session.Entry{
		"none":               {},
		"the table's GUID":   {{GUID: table}},
		"the zero GUID":      {{GUID: zero}},
		"twice":              {{GUID: a}, {GUID: sev.GUID{1}}, {GUID: a}},
		"one byte too large": {{GUID: a, Data: make([]byte, session.MaxSecret-2*20+1)}},
	} {
		if b, err := session.PackTable(entries); !errors.Is(err, session.ErrTable) {
			t.Errorf("%s: %d bytes, %v, want ErrTable", name, len(b), err)
		}
	}
	b, err := session.PackTable([]session.Entry{{GUID: a, Data: make([]byte, session.MaxSecret-2*20)}})
	if err != nil || len(b) != session.MaxSecret {
		t.Errorf("as large as may be: %d bytes, %v, want %d", len(b), err, session.MaxSecret)
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
