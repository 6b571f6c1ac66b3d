package keyring

import (
	"bytes"
	"strings"
	"testing"
)

func TestMKTMEPayload(t *testing.T) {
	key, tweak := bytes.Repeat([]byte{0xab}, 16), bytes.Repeat([]byte{0x01}, 16)
	for _, c := range []struct {
		m    MKTME
		want string // or "!" and a part of the error
	}{
		{MKTME{Source: FromCPU}, "type=cpu algorithm=aes-xts-128"},
		{
			MKTME{FromCPU, key, tweak},
			"type=cpu algorithm=aes-xts-128 key=" + strings.Repeat("ab", 16) + " tweak=" + strings.Repeat("01", 16),
		},
		{
			MKTME{FromUser, key, tweak},
			"type=user algorithm=aes-xts-128 key=" + strings.Repeat("ab", 16) + " tweak=" + strings.Repeat("01", 16),
		},
		{MKTME{Source: NoEncrypt}, "type=no-encrypt"},
		{MKTME{Source: FromUser}, "!16 bytes each"},
		{MKTME{FromUser, key, nil}, "!16 bytes each"},
		{MKTME{FromUser, key[:15], tweak}, "!16 bytes each"},
		{MKTME{FromCPU, key, nil}, "!or be left out"},
		{MKTME{NoEncrypt, key, tweak}, "!takes no key"},
		{MKTME{Source: "disk"}, "!must be cpu, user or no-encrypt"},
		{MKTME{}, "!must be cpu, user or no-encrypt"},
	} {
		got, err := c.m.Payload()
		part, fails := strings.CutPrefix(c.want, "!")
		if fails != (err != nil) || fails && !strings.Contains(err.Error(), part) || !fails && string(got) != c.want {
			t.Errorf("%+v: %q, %v; want %q", c.m, got, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "abab") {
			t.Errorf("the error shows the key: %v", err)
		}
	}
}

func TestParseMKTME(t *testing.T) {
	hex16 := strings.Repeat("ab", 16)
	for _, c := range []struct{ payload, want string }{ // "" or a part of the error
		{"type=cpu algorithm=aes-xts-128", ""},
		{"algorithm=aes-xts-128 type=cpu", ""},
		{"type=no-encrypt", ""},
		{"type=user algorithm=aes-xts-128 key=" + hex16 + " tweak=" + hex16, ""},
		{"type=user algorithm=aes-xts-128 key=" + hex16, "16 bytes each"},
		{"type=user algorithm=aes-xts-128 key=" + hex16 + "00 tweak=" + hex16, "32 digits"},
		{"type=user algorithm=aes-xts-128 key=zz" + hex16[2:] + " tweak=" + hex16, "32 digits"},
		{"type=cpu", "need an algorithm"},
		{"type=cpu algorithm=aes-xts-256", "must be aes-xts-128"},
		{"type=cpu type=user", "given twice"},
		{"userkey=" + hex16, "must be of type="}, // the spelling of the RFC's first version
		{"type=no-encrypt algorithm=aes-xts-128", "no-encrypt takes none"},
		{"type=no-encrypt key=" + hex16 + " tweak=" + hex16, "takes no key"},
		{"type=disk algorithm=aes-xts-128", "must be cpu, user or no-encrypt"},
		{"", "must be cpu, user or no-encrypt"},
	} {
		payload, want := c.payload, c.want
		m, err := ParseMKTME([]byte(payload))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", payload, err, want)
		}
		if err != nil && (strings.Contains(err.Error(), "abab") || m.Key != nil) {
			t.Errorf("%q: the key is shown or returned: %v", payload, err)
		}
	}
}

func TestCheck(t *testing.T) {
	blob := strings.Repeat("0f", 40)
	for _, c := range []struct {
		kind                 Type
		description, payload string
		want                 string // "" or a part of the error
	}{
		{User, "a", "b", ""},
		{User, "", "b", "description"},
		{User, "a\x00b", "b", "description"},
		{User, strings.Repeat("a", 4096), "b", "description"},
		{User, "a", "", "empty"},
		{User, "a", strings.Repeat("b", 32767), ""},
		{User, "a", strings.Repeat("b", 32768), "at most 32767"},
		{Logon, "fscrypt:a", "b", ""},
		{Logon, "a", "b", "SERVICE:NAME"},
		{Logon, ":a", "b", "SERVICE:NAME"},
		{Encrypted, "a", "new user:master 32", ""},
		{Encrypted, "a", "new default trusted:master 4096", ""},
		{Encrypted, "a", "new user:master 32 " + blob, ""},
		{Encrypted, "a", "load default user:master 32 " + blob, ""},
		{Encrypted, "a", "load user:master 32", "not hex"},
		{Encrypted, "a", "new user:master 19", "20 to 4096"},
		{Encrypted, "a", "new ecryptfs user:master 64", ""},
		{Encrypted, "a", "new ecryptfs user:master 32", "format ecryptfs"},
		{Encrypted, "a", "new enc32 user:master 32", ""},
		{Encrypted, "a", "new aes user:master 32", "format must be"},
		{Encrypted, "a", "new logon:master 32", "master key must be"},
		{Encrypted, "a", "new user: 32", "master key must be"},
		{Encrypted, "a", "new user:master many", "not a number"},
		{Encrypted, "a", "update user:master", "new or load"},
		{Encrypted, "a", "new user:master 32 " + blob + " more", "behind its blob"},
		{Trusted, "a", "new 32", ""},
		{Trusted, "a", "new 64 keyhandle=0x81000001", ""},
		{Trusted, "a", "new 129", "32 to 128"},
		{Trusted, "a", "new 32 keyhandle", "NAME=VALUE"},
		{Trusted, "a", "load " + blob, ""},
		{Trusted, "a", "load xyz", "not hex"},
		{Trusted, "a", "load", "not hex"},
		{Trusted, "a", "", "empty"},
		{Trusted, "a", "seal 32", "new or load"},
		{TypeMKTME, "a", "type=cpu algorithm=aes-xts-128", ""},
		{TypeMKTME, "a", "type=cpu", "algorithm"},
		{"asymmetric", "a", "anything", ""},
	} {
		err := Check(c.kind, c.description, []byte(c.payload))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %.20q %.40q: %v, want %q", c.kind, c.description, c.payload, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "0f0f") {
			t.Errorf("the error shows the payload: %v", err)
		}
	}
}

func FuzzMKTME(f *testing.F) {
	const bytes16 = "000102030405060708090a0b0c0d0e0f"
	f.Add([]byte("type=user algorithm=aes-xts-128 key=" + bytes16 + " tweak=" + bytes16))
	f.Add([]byte("type=cpu algorithm=aes-xts-128"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = Check(Encrypted, "fuzz", b)
		_ = Check(Trusted, "fuzz", b)
		m, err := ParseMKTME(b)
		if err != nil {
			return
		}
		again, err := m.Payload()
		if err != nil {
			t.Fatalf("%q was read, and cannot be written: %v", b, err)
		}
		back, err := ParseMKTME(again)
		if err != nil || back.Source != m.Source || !bytes.Equal(back.Key, m.Key) || !bytes.Equal(back.Tweak, m.Tweak) {
			t.Errorf("%q becomes %+v, %v", again, back, err)
		}
	})
}

func TestPermissionsInWords(t *testing.T) {
	for p, want := range map[Permissions]string{
		0:          "none",
		Possessed:  "possessor view,read,write,search",
		0x3f010000: "possessor view,read,write,search,link,setattr; user view",
		0x00090000: "user view,search",
		0x00000201: "group read; other view",
	} {
		if got := p.String(); got != want {
			t.Errorf("%08x: %q, want %q", uint32(p), got, want)
		}
	}
}
