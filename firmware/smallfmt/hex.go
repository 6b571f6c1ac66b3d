package smallfmt

import "errors"

const digits = "0123456789abcdef"

// Hex writes bytes in lower-case hex. Package encoding/hex links package fmt.
func Hex(b []byte) string {
	s := make([]byte, 0, 2*len(b))
	for _, c := range b {
		s = append(s, digits[c>>4], digits[c&15])
	}
	return string(s)
}

var errHex = errors.New("not hex")

// Unhex reads hex, of either case.
func Unhex(s string) ([]byte, error) {
	if len(s)%2 != 0 {
		return nil, errHex
	}
	b := make([]byte, len(s)/2)
	for i := range len(s) {
		n := nibble(s[i])
		if n < 0 {
			return nil, errHex
		}
		b[i/2] = b[i/2]<<4 | byte(n)
	}
	return b, nil
}

func nibble(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
