package luks_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/luks"
)

// volume2 is a volume of LUKS2 whose segments begin at some bytes, with data behind.
func volume2(metadata string) []byte {
	b := make([]byte, 64<<10)
	copy(b, "LUKS\xba\xbe")
	binary.BigEndian.PutUint16(b[6:], 2)
	binary.BigEndian.PutUint64(b[8:], 16<<10)
	copy(b[4096:], metadata)
	return b
}

func volume1(payload uint32) []byte {
	b := make([]byte, 64<<10)
	copy(b, "LUKS\xba\xbe")
	binary.BigEndian.PutUint16(b[6:], 1)
	binary.BigEndian.PutUint32(b[104:], payload)
	return b
}

const good = `{"segments":{"0":{"type":"crypt","offset":"32768"},"1":{"offset":"40960"}}}`

func TestCopy(t *testing.T) {
	for name, c := range map[string]struct {
		volume []byte
		want   int
	}{
		"LUKS2": {volume2(good), 32768},
		"LUKS1": {volume1(40), 40 * 512},
		"LUKS2 with data within the metadata's room": {volume2(`{"segments":{"0":{"offset":"8192"}}}`), 8192},
	} {
		var to bytes.Buffer
		sum, n, err := luks.Copy(&to, bytes.NewReader(c.volume))
		if err != nil || int(n) != c.want || !bytes.Equal(to.Bytes(), c.volume[:c.want]) ||
			sum != sha256.Sum256(c.volume[:c.want]) {
			t.Errorf("%s: %d bytes, %v, want the first %d", name, n, err, c.want)
		}
	}
}

// TestEveryByte: each byte of the area counts for the hash.
func TestEveryByte(t *testing.T) {
	v := volume2(good)
	want, _, err := luks.Copy(io.Discard, bytes.NewReader(v))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < 32768; i += 13 {
		v[i] ^= 1
		if sum, _, err := luks.Copy(io.Discard, bytes.NewReader(v)); err == nil && sum == want {
			t.Errorf("byte %d does not count", i)
		}
		v[i] ^= 1
	}
}

func TestRefused(t *testing.T) {
	far := volume2(good)
	binary.BigEndian.PutUint64(far[8:], 1<<40)
	three := volume2(good)
	three[7] = 3
	for name, v := range map[string][]byte{
		"nothing":            nil,
		"something else":     make([]byte, 8192),
		"cut off":            volume2(good)[:30000],
		"cut off early":      volume2(good)[:6000],
		"version 3":          three,
		"metadata of 1 TiB":  far,
		"no segments":        volume2(`{}`),
		"no JSON":            volume2(`{"segments":`),
		"a negative offset":  volume2(`{"segments":{"0":{"offset":"-5"}}}`),
		"an offset of zero":  volume2(`{"segments":{"0":{"offset":"0"}}}`),
		"a far offset":       volume2(fmt.Sprintf(`{"segments":{"0":{"offset":"%d"}}}`, uint64(luks.MaxHeader)+1)),
		"a huge offset":      volume2(`{"segments":{"0":{"offset":"99999999999999999999"}}}`),
		"LUKS1 without data": volume1(0),
		"LUKS1 of 2 TiB":     volume1(1<<32 - 1),
	} {
		if _, n, err := luks.Copy(io.Discard, bytes.NewReader(v)); !errors.Is(err, luks.ErrFormat) {
			t.Errorf("%s: %d bytes, %v, want ErrFormat", name, n, err)
		}
	}
}

func FuzzCopy(f *testing.F) {
	f.Add(volume2(good))
	f.Add(volume1(40))
	f.Fuzz(func(t *testing.T, v []byte) {
		var to bytes.Buffer
		_, n, err := luks.Copy(&to, bytes.NewReader(v))
		if err == nil && (int(n) != to.Len() || !bytes.HasPrefix(v, to.Bytes())) {
			t.Errorf("%d bytes, of which %d were copied", n, to.Len())
		}
	})
}
