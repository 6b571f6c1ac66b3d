//go:build !quick

// These take long, and need no more than the others.

package report_test

import (
	"slices"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
)

// TestEveryBit: no bit of a report can be changed, and a report that was cut or continued is
// none.
func TestEveryBit(t *testing.T) {
	b := newBench(t, kds.Turin)
	good := b.ek.Report(t, func(r []byte) { le.PutUint32(r, 5) })
	if err := b.verify(t, good); err != nil {
		t.Fatal(err)
	}
	for bit := range 8 * len(good) {
		if off := bit / 8; off >= 0x2a0 && off < 0x330 && bit%5 != 0 { // a sample of the signature
			continue
		}
		bad := slices.Clone(good)
		bad[bit/8] ^= 1 << (bit % 8)
		if refusal.Of(b.verify(t, bad)) == nil {
			t.Fatalf("bit %d of byte %#x was changed, and the report is accepted", bit%8, bit/8)
		}
	}
	for _, bad := range [][]byte{nil, good[:1], good[:len(good)-1], append(slices.Clone(good), 0)} {
		if e := refusal.Of(b.verify(t, bad)); e == nil || e.Reason != refusal.ReportSize {
			t.Errorf("%d bytes: %v, want %s", len(bad), e, refusal.ReportSize)
		}
	}
}
