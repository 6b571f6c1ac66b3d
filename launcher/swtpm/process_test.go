package swtpm

import (
	"testing"

	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/tpm"
	"github.com/vmlatch/vmlatch/firmware/tpm/tpmtest"
)

// TestAllocateRefused: only the byte that says so is success.
func TestAllocateRefused(t *testing.T) {
	banks, answer := []eventlog.Bank{eventlog.SHA256}, tpmtest.Answer
	for what, x := range map[string]struct {
		a  []byte
		ok bool
	}{
		"done":    {answer(0, 24, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0), true},
		"no room": {answer(0, 15, 0, 0, 0, 0, 0), false},
		"refused": {answer(0x184, 10), false}, "short": {answer(0, 12, 0, 0), false},
	} {
		if err := (&process{data: tpm.New(tpmtest.Answering(t, x.a))}).allocate(banks); (err == nil) != x.ok {
			t.Errorf("%s: %v", what, err)
		}
	}
}
