package spec_test

import (
	"strings"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/launcher/spec"
)

func TestDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"30s": 30 * time.Second, "5m": 5 * time.Minute, "1h30m": 90 * time.Minute, "1ns": 1,
	} {
		var d spec.Duration
		if err := d.UnmarshalText([]byte(text)); err != nil || time.Duration(d) != want {
			t.Errorf("%q: %v, %v, want %v", text, time.Duration(d), err, want)
		}
		again := d
		written, err := d.MarshalText()
		if err != nil || again.UnmarshalText(written) != nil || again != d {
			t.Errorf("%q: written as %q, %v, which is read as %v", text, written, err, time.Duration(again))
		}
	}
	const unit = "must be a number with a unit"
	for text, want := range map[string]string{
		"": unit, "x": unit, "5": `"5": ` + unit, "5d": `"5d": ` + unit,
		"0s": "must be positive", "-1s": `"-1s": must be positive`, "9999999h": unit,
	} {
		var d spec.Duration
		if err := d.UnmarshalText([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want an error with %q", text, err, want)
		}
	}
}
