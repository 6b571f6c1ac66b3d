package guid

import "testing"

func TestRoundTrip(t *testing.T) {
	const text = "1e74f542-71dd-4d66-963e-ef4287ff173b"
	g := MustParse(text)
	if got := g.String(); got != text {
		t.Errorf("%s prints as %s", text, got)
	}
	want := GUID{0x42, 0xf5, 0x74, 0x1e, 0xdd, 0x71, 0x66, 0x4d, 0x96, 0x3e, 0xef, 0x42, 0x87, 0xff, 0x17, 0x3b}
	if g != want {
		t.Errorf("%s lies in memory as %x, want %x", text, g[:], want[:])
	}
}

func TestMalformed(t *testing.T) {
	const text = "1e74f542-71dd-4d66-963e-ef4287ff173b"
	for _, bad := range []string{
		"", "x", text + "0", text[:35],
		"1e74f542_71dd_4d66_963e_ef4287ff173b",
		" 1e74f54-71dd-4d66-963e-ef4287ff173b",
		"1e74f54-271dd-4d66-963e-ef4287ff173b",
		"1e74f542-71d-d4d66-963e-ef4287ff173b",
		"1e74f542-71dd-4d6-6963e-ef4287ff173b",
		"1e74f542-71dd-4d66-963-eef4287ff173b",
	} {
		if g, err := Parse(bad); err == nil {
			t.Errorf("%q parses to %v, want an error", bad, g)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("MustParse of a malformed GUID returns, want a panic")
		}
	}()
	MustParse("x")
}
