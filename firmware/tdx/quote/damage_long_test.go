//go:build !quick

// These take long, and need no more than the others.

package quote_test

import (
	"slices"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/evidence/evidencetest"
	"github.com/vmlatch/vmlatch/firmware/refusal"
)

// TestEveryBit: no bit of a quote can be changed, in either version, up to the chain of
// certificates, of which a sample is tried.
func TestEveryBit(t *testing.T) {
	b := newBench(t, true)
	for _, version := range []uint16{4, 5} {
		good := b.platform.Quote(t, func(q *evidencetest.QuoteParts) { q.Version, q.Is15 = version, version == 5 })
		if _, err := b.verify(t, good); err != nil {
			t.Fatal(err)
		}
		for bit := range 8 * len(good) {
			off := bit / 8
			if off > 1700 && bit%97 != 0 || off > 760 && bit%11 != 0 || version == 5 && off > 60 && bit%7 != 0 {
				continue
			}
			bad := slices.Clone(good)
			bad[bit/8] ^= 1 << (bit % 8)
			_, err := b.verify(t, bad)
			if err != nil {
				if refusal.Of(err) == nil {
					t.Fatalf("byte %#x: %v is not a refusal", bit/8, err)
				}
				continue
			}
			if !harmless(good, bad) {
				t.Fatalf(
					"version %d: bit %d of byte %#x was changed, and the quote is accepted",
					version,
					bit%8,
					bit/8,
				)
			}
		}
		for n := range len(good) { // every length
			if n > 100 && n%29 != 0 {
				continue
			}
			if _, err := b.verify(t, good[:n]); refusal.Of(err) == nil {
				t.Fatalf("cut to %d bytes of %d: %v", n, len(good), err)
			}
		}
	}
}
