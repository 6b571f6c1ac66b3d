package exchange

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	for _, good := range []string{"a", "A", "0", "z9", "a.b-c_d", strings.Repeat("x", 63), "9-"} {
		if err := CheckName(good); err != nil {
			t.Errorf("%q: %v, want nil", good, err)
		}
	}
	for _, bad := range []string{
		"", strings.Repeat("x", 64), ".", "-a", "_a", "a b", "a/b", "a\n", "é", "aé", "a\x00",
	} {
		if err := CheckName(bad); err == nil {
			t.Errorf("%q is a name, want an error", bad)
		}
	}
}

// TestPacketBounds: each size up to its limit, and beyond.
func TestPacketBounds(t *testing.T) {
	for _, c := range []struct {
		header, secret int
		ok             bool
	}{
		{52, 16, true},
		{52, 16 << 10, true},
		{52, 0, false},
		{52, 15, false},
		{52, 17, false},
		{52, 16<<10 + 16, false},
		{51, 16, false},
		{53, 16, false},
		{0, 16, false},
	} {
		b, err := json.Marshal(Packet{
			Schema: PacketSchema, Header: make([]byte, c.header), Secret: make([]byte, c.secret),
		})
		if err != nil {
			t.Fatal(err)
		}
		p, err := ParsePacket(b)
		if (err == nil) != c.ok || (p != nil) != c.ok || err != nil && !errors.Is(err, ErrFormat) {
			t.Errorf("header of %d bytes, secret of %d: %v, %v, want it taken: %t", c.header, c.secret, p, err, c.ok)
		}
	}
}

func TestPlatformForm(t *testing.T) {
	good, err := json.Marshal(Platform{Schema: PlatformSchema, PDH: []byte{1}, CBitPos: 51})
	if err != nil {
		t.Fatal(err)
	}
	if p, err := ParsePlatform(good); err != nil || p.CBitPos != 51 || len(p.PDH) != 1 {
		t.Errorf("%+v, %v, want what was written", p, err)
	}
	if _, err := ParsePlatform(append([]byte("\uFEFF"), good...)); err != nil {
		t.Errorf("with a byte order mark: %v", err)
	}
	if _, err := ParsePlatform([]byte("\xff\xfe{\x00}\x00")); !errors.Is(err, ErrFormat) ||
		!strings.Contains(err.Error(), "save it as UTF-8") {
		t.Errorf("in UTF-16: %v, want a word of it", err)
	}
	for _, bad := range []string{"", "{}", "[]", strings.Replace(string(good), "platform/1", "platform/2", 1)} {
		if _, err := ParsePlatform([]byte(bad)); !errors.Is(err, ErrFormat) {
			t.Errorf("%q: %v, want ErrFormat", bad, err)
		}
	}
}
