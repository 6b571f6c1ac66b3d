//go:build !quick

package ccel_test

import (
	"testing"

	"github.com/vmlatch/vmlatch/firmware/evidence/evidencetest"
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
