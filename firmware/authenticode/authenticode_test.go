package authenticode

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"testing"
)

type vector struct {
	File  string `json:"file"`
	Image []byte `json:"image_base64"`
	Want  string `json:"sha256"`
}

func vectors(t testing.TB) (list []vector) {
	t.Helper()
	b, err := os.ReadFile("testdata/images.json")
	if err == nil {
		err = json.Unmarshal(b, &list)
	}
	if err != nil || len(list) == 0 {
		t.Fatal(len(list), err)
	}
	return list
}

func TestSum(t *testing.T) {
	for _, v := range vectors(t) {
		got, err := Sum(v.Image, sha256.New())
		if err != nil || hex.EncodeToString(got) != v.Want {
			t.Errorf("%s: %x, %v, want %s", v.File, got, err, v.Want)
		}
	}
}

// TestDamaged: what is cut is refused, or has another digest.
func TestDamaged(t *testing.T) {
	for _, v := range vectors(t) {
		for n := 0; n < len(v.Image); n += 1 + n/64 {
			got, err := Sum(v.Image[:n], sha256.New())
			if err != nil && !errors.Is(err, ErrFormat) {
				t.Errorf("%s, %d bytes: %v, want %v", v.File, n, err, ErrFormat)
			}
			if err == nil && hex.EncodeToString(got) == v.Want {
				t.Errorf("%s, %d bytes: the digest is that of the whole", v.File, n)
			}
		}
	}
}

func FuzzSum(f *testing.F) {
	for _, v := range vectors(f) {
		f.Add(v.Image)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		_, _ = Sum(b, sha256.New())
		if !bytes.Equal(before, b) {
			t.Error("the image was changed")
		}
	})
}
