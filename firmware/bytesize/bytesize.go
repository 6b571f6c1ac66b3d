// Package bytesize reads and writes sizes as people do: 512MiB, 4GiB.
package bytesize

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Size is a number of bytes.
type Size uint64

var units = []struct {
	name  string
	bytes uint64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
}

// Parse reads a whole number with a unit: 512MiB, 4GiB. A bare letter is
// refused, for people mean 10^9 and 2^30 by the same one.
func Parse(s string) (Size, error) {
	s = strings.TrimSpace(s)
	digits := strings.TrimRight(s, "KMGTkmgtiIbB")
	unit := s[len(digits):]
	n, err := strconv.ParseUint(strings.TrimSpace(digits), 10, 64)
	if err != nil || digits == "" {
		return 0, fmt.Errorf("size %q: must be a whole number and a unit, such as 512MiB", s)
	}
	for _, u := range units {
		if u.name == unit {
			if n > math.MaxUint64/u.bytes {
				return 0, fmt.Errorf("size %q: is too large", s)
			}
			return Size(n * u.bytes), nil
		}
	}
	if unit == "" {
		return 0, fmt.Errorf("size %q: has no unit; write %dMiB or %dGiB", s, n, n)
	}
	return 0, fmt.Errorf("size %q: unit %q could mean two things; write %d%siB", s, unit, n, strings.ToUpper(unit[:1]))
}

// UnmarshalText is Parse.
func (s *Size) UnmarshalText(b []byte) (err error) {
	*s, err = Parse(string(b))
	return err
}

// MarshalText is String.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

func (s Size) String() string {
	for _, u := range units {
		if s != 0 && uint64(s)%u.bytes == 0 {
			return fmt.Sprintf("%d%s", uint64(s)/u.bytes, u.name)
		}
	}
	return fmt.Sprintf("%dB", uint64(s))
}

// MiB is the size in whole mebibytes.
func (s Size) MiB() uint64 { return uint64(s) >> 20 }
