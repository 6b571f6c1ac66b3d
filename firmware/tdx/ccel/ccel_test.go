package ccel_test

import (
	"crypto/sha512"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/evidence/evidencetest"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/tdx/ccel"
)

// TestReplay: the registers of a log are those of its events, with and without padding.
func TestReplay(t *testing.T) {
	events := []ccel.Event{
		evidencetest.Hashed(1, 0x80000003, []byte("a kernel")),
		evidencetest.Hashed(2, 6, []byte("a command line")),
		evidencetest.Hashed(1, 4, make([]byte, 4)),
	}
	log := evidencetest.Log(events...)
	var want [4][48]byte
	for _, e := range events {
		want[e.Register] = sha512.Sum384(append(want[e.Register][:], e.Digest[:]...))
	}
	for name, b := range map[string][]byte{
		"bare": log, "padded": slices.Concat(log, fill(4096)), "three bytes": slices.Concat(log, fill(3)),
	} {
		l, err := ccel.Parse(b)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := l.Replay(); got != want || len(l.Events) != len(events) {
			t.Errorf("%s: %x, want %x", name, got, want)
		}
		if err := l.Match(want); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		extended := want
		extended[3] = ccel.Extend(extended[3], [48]byte{1})
		if err := l.Match(extended); err != nil {
			t.Errorf("%s, and the guest has extended RTMR3: %v", name, err)
		}
		extended[1][0] ^= 1
		if e := refusal.Of(l.Match(extended)); e == nil || e.Reason != refusal.CCELMismatch {
			t.Errorf("%s, another RTMR1: %v, want %s", name, e, refusal.CCELMismatch)
		}
		if !l.Events[0].HashesData() {
			t.Errorf("%s: an event's digest is not that of its data", name)
		}
	}
}

func fill(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = 0xff
	}
	return b
}

// TestDamagedLogs: every cut and every changed length is refused, or leads to other registers.
func TestDamagedLogs(t *testing.T) {
	log := evidencetest.Log(evidencetest.Hashed(0, 1, []byte("x")), evidencetest.Hashed(1, 1, []byte("y")))
	whole, err := ccel.Parse(log)
	if err != nil {
		t.Fatal(err)
	}
	want := whole.Replay()
	check := func(what string, at int, b []byte) {
		t.Helper()
		l, err := ccel.Parse(b)
		if err == nil && l.Match(want) == nil && len(b) < len(log) {
			t.Errorf("%s at %d: the log is still taken for whole", what, at)
		}
		if err != nil && (refusal.Of(err) == nil || refusal.Of(err).Reason != refusal.CCELMalformed) {
			t.Errorf("%s at %d: %v, want %s", what, at, err, refusal.CCELMalformed)
		}
	}
	for n := range len(log) {
		check("cut", n, log[:n])
	}
	for at := range len(log) - 4 {
		for _, v := range []uint32{0xfffffffe, 0x7fffffff, 0x10000} {
			b := append([]byte{}, log...)
			binary.LittleEndian.PutUint32(b[at:], v)
			check("changed", at, b)
		}
	}
	if _, err := ccel.Parse(make([]byte, ccel.MaxSize+1)); refusal.Of(err) == nil {
		t.Errorf("a log beyond the bound: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(evidencetest.Log(evidencetest.Hashed(1, 1, []byte("x"))))
	f.Fuzz(func(_ *testing.T, b []byte) {
		if l, err := ccel.Parse(b); err == nil {
			_ = l.Replay()
		}
	})
}
