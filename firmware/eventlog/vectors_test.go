//go:build !quick

package eventlog_test

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/internal/vectors"
)

// TestReplays: what other implementations read from recorded logs of TPMs and trust domains.
func TestReplays(t *testing.T) {
	vectors.Each(t, "eventlog-replay", func(t *testing.T, v vectors.Vector) {
		var in struct{ File string }
		var want struct {
			Events    map[string]int
			Registers map[string]string
		}
		v.In(t, &in)
		v.Want(t, &want)
		l, err := eventlog.Parse(vectors.File(t, in.File))
		if err != nil {
			t.Fatal(err)
		}
		for bank, n := range want.Events {
			b, err := eventlog.BankNamed(strings.ToLower(bank))
			if err != nil {
				t.Fatal(err)
			}
			l.Locality = 0 // which the others leave out
			pcrs, err := l.Replay(b)
			if err != nil || len(l.Events) != n {
				t.Fatalf("%v: %d events, want %d; %v", b, len(l.Events), n, err)
			}
			for i, pcr := range pcrs {
				w, ok := want.Registers[fmt.Sprintf("%s:%d", bank, i)]
				if ok && hex.EncodeToString(pcr) != w {
					t.Errorf("%v: PCR %d is %x, want %s", b, i, pcr, w)
				}
			}
		}
	})
}
