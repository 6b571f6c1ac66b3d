package authenticode

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/internal/vectors"
)

func TestSum(t *testing.T) {
	vectors.EachPCRs(t, func(t *testing.T, v *vectors.PCRs) {
		for _, x := range v.Small.Authenticode {
			got, err := Sum(x.Image, sha256.New())
			if err != nil || hex.EncodeToString(got) != x.SHA256 {
				t.Errorf("%s: %x, %v, want %s", x.File, got, err, x.SHA256)
			}
		}
	})
}

// TestDamaged: what is cut is refused, or has another digest.
func TestDamaged(t *testing.T) {
	vectors.EachPCRs(t, func(t *testing.T, v *vectors.PCRs) {
		for _, x := range v.Small.Authenticode {
			for n := 0; n < len(x.Image); n += 1 + n/64 {
				got, err := Sum(x.Image[:n], sha256.New())
				if err != nil && !errors.Is(err, ErrFormat) {
					t.Errorf("%s, %d bytes: %v, want %v", x.File, n, err, ErrFormat)
				}
				if err == nil && hex.EncodeToString(got) == x.SHA256 {
					t.Errorf("%s, %d bytes: the digest is that of the whole", x.File, n)
				}
			}
		}
	})
}

func FuzzSum(f *testing.F) {
	for _, x := range vectors.PCRVectors(f).Small.Authenticode {
		f.Add(x.Image)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		_, _ = Sum(b, sha256.New())
		if !bytes.Equal(before, b) {
			t.Error("the image was changed")
		}
	})
}
