package smallfmt_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/smallfmt"
)

// TestAsFmt: what is supported reads as package fmt writes it.
func TestAsFmt(t *testing.T) {
	for _, c := range []struct {
		format string
		args   []any
	}{
		{"nothing", nil},
		{"", nil},
		{"%s and %v", []any{"one", "two"}},
		{"%d%d %d %d", []any{1, int64(-2), uint32(3), uint64(1 << 63)}},
		{"%d %d", []any{uint8(200), uint16(60000)}},
		{"%q|%s", []any{`a"\b` + "\x01", []byte("c")}},
		{"100%% of %v", []any{"1s"}},
		{"%v: %s", []any{io.EOF, errors.New("x")}},
	} {
		if got, want := smallfmt.Sprintf(c.format, c.args...), fmt.Sprintf(c.format, c.args...); got != want {
			t.Errorf("%q: %q, want %q", c.format, got, want)
		}
	}
}

func TestErrorf(t *testing.T) {
	other := errors.New("other")
	err := smallfmt.Errorf("a: %w: %v: %w", io.EOF, io.ErrNoProgress, other)
	if !errors.Is(err, io.EOF) || !errors.Is(err, other) || errors.Is(err, io.ErrNoProgress) {
		t.Errorf("%v wraps other errors than it says", err)
	}
	if want := "a: EOF: " + io.ErrNoProgress.Error() + ": other"; err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
	for _, odd := range []string{"%", "%s", "x %d %s"} {
		_ = smallfmt.Sprintf(odd)
	}
	if got := smallfmt.Sprintf("%v %s", struct{}{}, 1.5); got != "? ?" {
		t.Errorf("%q, want what is not supported as ?", got)
	}
}

func TestHex(t *testing.T) {
	b := make([]byte, 256)
	for i := range b {
		b[i] = byte(i)
	}
	if got, want := smallfmt.Hex(b), hex.EncodeToString(b); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	for _, s := range []string{"", "00ff", "aBcD", "0", "0g", "g0", "é0", " 00"} {
		got, err := smallfmt.Unhex(s)
		want, want2 := hex.DecodeString(s)
		if (err == nil) != (want2 == nil) || err == nil && !bytes.Equal(got, want) {
			t.Errorf("%q: %x, %v, want %x, %v", s, got, err, want, want2)
		}
	}
}
