// Package guid holds GUIDs in the form in which firmware stores them.
//
// Source: UEFI specification 2.10, appendix A, EFI_GUID.
package guid

import (
	"slices"

	"github.com/vmlatch/vmlatch/firmware/smallfmt"
)

// GUID is a GUID as it lies in memory: the first three fields little-endian.
type GUID [16]byte

// Parse reads the usual text form, 8-4-4-4-12 hex digits.
func Parse(s string) (GUID, error) {
	var g GUID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return g, smallfmt.Errorf("%q is not a GUID", s)
	}
	raw, err := smallfmt.Unhex(s[:8] + s[9:13] + s[14:18] + s[19:23] + s[24:])
	if err != nil || len(raw) != len(g) {
		return g, smallfmt.Errorf("%q is not a GUID", s)
	}
	copy(g[:], raw)
	for _, field := range [][]byte{g[0:4], g[4:6], g[6:8]} {
		slices.Reverse(field)
	}
	return g, nil
}

// MustParse is Parse for constants.
func MustParse(s string) GUID {
	g, err := Parse(s)
	if err != nil {
		panic(err)
	}
	return g
}

func (g GUID) String() string {
	for _, field := range [][]byte{g[0:4], g[4:6], g[6:8]} {
		slices.Reverse(field)
	}
	s := smallfmt.Hex(g[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}
