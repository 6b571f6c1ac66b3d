package igvm

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/internal/vectors"
)

func vectorFile(t testing.TB, raw []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDigestVectors(t *testing.T) {
	vectors.Each(t, "igvm-snp-digest", func(t *testing.T, v vectors.Vector) {
		var in struct {
			File []byte `json:"igvm_gzip_base64"`
		}
		v.In(t, &in)
		var want struct {
			NativeZero   string `json:"native_zero"`
			ZeroAsNormal string `json:"zero_as_normal"`
		}
		v.Want(t, &want)
		b := vectorFile(t, in.File)
		f, err := Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		for opt, digest := range map[Options]string{{}: want.NativeZero, {ZeroAsNormal: true}: want.ZeroAsNormal} {
			if got, err := f.SNPDigest(opt); err != nil || got.String() != digest {
				t.Errorf("%+v: %v, %v, want %s", opt, got, err, digest)
			}
		}
		for n := range len(b) / 97 { // shortened anywhere it is refused
			if _, err := Parse(b[:n*97]); !errors.Is(err, ErrFormat) {
				t.Errorf("%d bytes of it: %v", n*97, err)
			}
		}
		for off := range 24 + 560 { // each bit of the headers is under the checksum
			bad := bytes.Clone(b)
			bad[off] ^= 1 << (off % 8)
			if _, err := Parse(bad); err == nil {
				t.Errorf("bit at %d is not noticed", off)
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	header := make([]byte, 48)
	copy(header, magic)
	le.PutUint32(header[4:], 1)
	le.PutUint32(header[8:], 24)
	le.PutUint32(header[12:], 24)
	le.PutUint32(header[16:], 48)
	le.PutUint32(header[24:], uint32(TypeSupportedPlatform))
	le.PutUint32(header[28:], 16)
	header[37] = platformSNP
	f.Add(header)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > fixedSizeV2 && Is(b) { // let it past the checksum
			off, size := uint64(le.Uint32(b[8:])), uint64(le.Uint32(b[12:]))
			if off+size <= uint64(len(b)) && off+size < 1<<20 {
				b = bytes.Clone(b)
				le.PutUint32(b[16:], uint32(len(b)))
				fixed := uint64(fixedSizeV1)
				if le.Uint32(b[4:]) == 2 {
					fixed = fixedSizeV2
				}
				le.PutUint32(b[20:], checksum(b, fixed, off, size))
			}
		}
		if file, err := Parse(b); err == nil {
			_, _ = file.SNPDigest(Options{})
		}
	})
}
