package spec

import (
	"fmt"
	"time"
)

// Duration is a time.Duration written as 30s or 5m.
type Duration time.Duration

// UnmarshalText is time.ParseDuration, for what is longer than nothing.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		err = fmt.Errorf(`duration %q: must be a number with a unit, such as "30s" or "5m"`, b)
	} else if v <= 0 {
		err = fmt.Errorf("duration %q: must be positive", b)
	}
	*d = Duration(v)
	return err
}

// MarshalText writes the form that UnmarshalText reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }
