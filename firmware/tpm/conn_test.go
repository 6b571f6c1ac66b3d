package tpm_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/tpm"
	"github.com/vmlatch/vmlatch/firmware/tpm/tpmtest"
)

var ask = []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x44}

// TestSend: a TPM that is busy is asked again, and one that lies is an error.
func TestSend(t *testing.T) {
	const retry, testing, yielded, most = 0x922, 0x90a, 0x908, 8 << 10
	answer := tpmtest.Answer
	good := answer(0, 12, 1, 2)
	for what, x := range map[string]struct {
		answers [][]byte
		want    []byte
	}{
		"at once":     {[][]byte{good}, good},
		"after retry": {[][]byte{answer(retry, 10), answer(testing, 10), answer(yielded, 10), good}, good},
		"an error":    {[][]byte{answer(0x101, 10)}, answer(0x101, 10)},
		"too short":   {[][]byte{answer(0, 9)}, nil},
		"too long":    {[][]byte{answer(0, most+1)}, nil},
		"endless":     {[][]byte{answer(0, 1<<31)}, nil},
		"too many":    {[][]byte{answer(0, 12, 1, 2, 3)}, nil},
		"cut off":     {[][]byte{answer(0, 12, 1)}, nil},
		"half":        {[][]byte{good[:7]}, nil},
		"silence":     {nil, nil},
		"for ever":    {bytes.SplitAfterN(bytes.Repeat(answer(retry, 10), 40), []byte{9, 0x22}, -1), nil},
	} {
		c := tpm.New(tpmtest.Answering(t, x.answers...))
		c.NoSleep()
		got, err := c.Send(ask)
		var known *tpm.Error
		if !bytes.Equal(got, x.want) || (err != nil) != (x.want == nil) || err != nil && !errors.As(err, &known) {
			t.Errorf("%s: %x, %v, want %x", what, got, err, x.want)
		}
	}
}

// TestOpen: what is not a TPM is named as such.
func TestOpen(t *testing.T) {
	dir := t.TempDir()
	if _, err := tpm.Open(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
	for _, name := range []string{dir, "/dev/null/x"} {
		if _, err := tpm.Open(name); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

// TestReadPCRs: a TPM may give registers in parts, but not none, nor more than were asked for.
func TestReadPCRs(t *testing.T) {
	s, err := tpm.ParseSelection(eventlog.SHA256, "0,4,9")
	if err != nil {
		t.Fatal(err)
	}
	reply := func(pcrs []int, values ...[]byte) []byte {
		list := tpm.Selection{Bank: eventlog.SHA256, PCRs: pcrs}.List()
		r := tpm2.PCRReadResponse{PCRSelectionOut: list}
		for _, v := range values {
			r.PCRValues.Digests = append(r.PCRValues.Digests, tpm2.TPM2BDigest{Buffer: v})
		}
		b := append([]byte{0, 0, 0, 1}, tpm2.Marshal(list)...)
		b = append(b, tpm2.Marshal(r.PCRValues)...)
		return tpmtest.Answer(0, uint32(10+len(b)), b...)
	}
	one := func(n byte) []byte { return bytes.Repeat([]byte{n}, 32) }
	for what, x := range map[string]struct {
		answers [][]byte
		ok      bool
	}{
		"at once":    {[][]byte{reply([]int{0, 4, 9}, one(0), one(4), one(9))}, true},
		"in parts":   {[][]byte{reply([]int{0, 9}, one(0), one(9)), reply([]int{4}, one(4))}, true},
		"none":       {[][]byte{reply(nil)}, false},
		"others":     {[][]byte{reply([]int{1, 2}, one(1), one(2))}, false},
		"one short":  {[][]byte{reply([]int{0, 4, 9}, one(0), one(4))}, false},
		"one beyond": {[][]byte{reply([]int{0, 4}, one(0), one(4), one(9))}, false},
	} {
		values, err := tpm.New(tpmtest.Answering(t, x.answers...)).ReadPCRs(s)
		if (err == nil) != x.ok {
			t.Errorf("%s: %v", what, err)
		}
		for _, n := range s.PCRs {
			if x.ok && !bytes.Equal(values[n], one(byte(n))) {
				t.Errorf("%s: PCR %d is %x", what, n, values[n])
			}
		}
	}
}

// TestExplain: refusals that people can do something about say what.
func TestExplain(t *testing.T) {
	for _, code := range []tpm2.TPMRC{
		tpm2.TPMRCLockout, tpm2.TPMRCFailure, tpm2.TPMRCNVSpace, tpm2.TPMRCPolicyFail, tpm2.TPMRCInitialize,
		tpm2.TPMRCObjectMemory, tpm2.TPMRCHash, tpm2.TPMRCCommandCode,
	} {
		err := tpm.Explain("quote", fmt.Errorf("go-tpm: %w", code))
		var e *tpm.Error
		if !errors.As(err, &e) || e.Cause == "" || e.Fix == "" || !errors.Is(err, code) {
			t.Errorf("%v: %v", code, err)
		}
		if again := tpm.Explain("something else", err); again != err {
			t.Errorf("%v is explained twice: %v", code, again)
		}
	}
	if err := tpm.Explain("quote", nil); err != nil {
		t.Error(err)
	}
}

func TestSelection(t *testing.T) {
	for text, want := range map[string]string{
		"4,7,9": "4,7,9", "9, 4,4": "4,9", "23": "23", "24": "", "-1": "", "": "", "a": "",
	} {
		s, err := tpm.ParseSelection(eventlog.SHA256, text)
		if (err != nil) != (want == "") || err == nil && s.String() != want {
			t.Errorf("%q: %v, %v, want %q", text, s, err, want)
		}
	}
}
