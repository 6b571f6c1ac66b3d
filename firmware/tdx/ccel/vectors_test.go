//go:build !quick

package ccel_test

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/evidence/evidencetest"
	"github.com/vmlatch/vmlatch/firmware/internal/vectors"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/tdx/ccel"
	"github.com/vmlatch/vmlatch/firmware/tdx/quote"
)

func TestVectors(t *testing.T) {
	evidencetest.EachVector(t, "ccel", func(t *testing.T, v *evidencetest.Vector) {
		err := replay(t, v)
		reason := ""
		if e := refusal.Of(err); e != nil {
			reason = string(e.Reason)
		}
		v.Hold(t, reason, err)
	})
}

func replay(t *testing.T, v *evidencetest.Vector) error {
	t.Helper()
	q, err := quote.Parse(v.Input(t, "quote"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := ccel.Parse(v.Input(t, "log"))
	if err != nil {
		return err
	}
	return l.Match(q.Body.RTMR)
}

// TestReplays: what other implementations read from recorded logs. The logs of TPMs among the
// vectors have no register of a trust domain, or other algorithms.
func TestReplays(t *testing.T) {
	vectors.Each(t, "eventlog-replay", func(t *testing.T, v vectors.Vector) {
		var in struct{ File string }
		var want struct {
			Events    map[string]int
			Registers map[string]string
		}
		v.In(t, &in)
		v.Want(t, &want)
		if !strings.Contains(in.File, "/ccel/") {
			return
		}
		l, err := ccel.Parse(vectors.File(t, in.File))
		if err != nil {
			t.Fatal(err)
		}
		if n := len(l.Events); n != want.Events["SHA384"] {
			t.Errorf("%d events, want %d", n, want.Events["SHA384"])
		}
		rtmr := l.Replay()
		for i := range rtmr {
			w, extended := want.Registers[fmt.Sprintf("SHA384:%d", i+1)] // 0 is MRTD
			if !extended {
				w = strings.Repeat("0", 96)
			}
			if got := hex.EncodeToString(rtmr[i][:]); got != w {
				t.Errorf("RTMR%d is %s, want %s", i, got, w)
			}
		}
	})
}
