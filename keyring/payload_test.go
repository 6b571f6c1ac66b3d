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
		{MKTME{FromCPU, key, tweak}, "type=cpu algorithm=aes-xts-128 key=" + strings.Repeat("ab", 16) + " tweak=" + strings.Repeat("01", 16)},
		{MKTME{FromUser, key, tweak}, "type=user algorithm=aes-xts-128 key=" + strings.Repeat("ab", 16) + " tweak=" + strings.Repeat("01", 16)},
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
