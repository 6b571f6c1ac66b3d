package main

import (
	"testing"
	"time"
)

func TestUpFor(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 12*time.Second + 400*time.Millisecond: "12s", 185 * time.Second: "3m5s",
		2*time.Hour + 10*time.Minute + time.Second: "2h10m", 99*time.Hour + 59*time.Minute: "4d3h",
	} {
		if got := upFor(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}
