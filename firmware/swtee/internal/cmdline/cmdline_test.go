package cmdline

import (
	"slices"
	"testing"
)

func FuzzSplit(f *testing.F) {
	f.Add("socket,id=a,,b,server=on")
	f.Fuzz(func(t *testing.T, s string) {
		once := Split(s)
		again := Split(once.String())
		if !slices.Equal(once, again) {
			t.Errorf("%q: %+v, then %+v", s, once, again)
		}
	})
}
