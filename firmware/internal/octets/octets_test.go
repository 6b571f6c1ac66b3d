package octets

import "testing"

func TestOctets(t *testing.T) {
	b := []byte{1, 2, 0}
	if n := Number(b); n.Int64() != 0x201 || b[0] != 1 {
		t.Errorf("%v, and the bytes are %v now, want 513 and no change", n, b)
	}
	for _, c := range []struct {
		b    []byte
		want bool
	}{{nil, true}, {make([]byte, 5), true}, {[]byte{0, 0, 1}, false}, {[]byte{1, 0}, false}} {
		if AllZero(c.b) != c.want {
			t.Errorf("%v: %t", c.b, !c.want)
		}
	}
}
