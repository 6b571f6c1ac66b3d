package swtpm

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/eventlog"
)

// answering is a TPM that gives these answers, one for each command, and hangs up then.
func answering(t *testing.T, answers ...[]byte) *process {
	t.Helper()
	own, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		for _, a := range answers {
			header := make([]byte, headerSize)
			if _, err := io.ReadFull(theirs, header); err != nil {
				return
			}
			rest := int64(binary.BigEndian.Uint32(header[2:])) - headerSize
			if _, err := io.CopyN(io.Discard, theirs, rest); err != nil {
				return
			}
			if _, err := theirs.Write(a); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { _ = own.Close() })
	return &process{data: own}
}

// answer is one with a code, that says it has so many bytes.
func answer(code, size uint32, more ...byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, 0x8001)
	b = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, size), code)
	return append(b, more...)
}

var ask = []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x44}

// TestSend: a TPM that is busy is asked again, and one that lies is an error.
func TestSend(t *testing.T) {
	good := answer(0, 12, 1, 2)
	for what, x := range map[string]struct {
		answers [][]byte
		want    []byte
	}{
		"at once":     {[][]byte{good}, good},
		"after retry": {[][]byte{answer(rcRetry, 10), answer(rcTesting, 10), answer(rcYielded, 10), good}, good},
		"an error":    {[][]byte{answer(0x101, 10)}, answer(0x101, 10)},
		"too short":   {[][]byte{answer(0, 9)}, nil},
		"too long":    {[][]byte{answer(0, maxAnswer+1)}, nil},
		"endless":     {[][]byte{answer(0, 1<<31)}, nil},
		"cut off":     {[][]byte{answer(0, 12, 1)}, nil},
		"half":        {[][]byte{good[:7]}, nil},
		"silence":     {nil, nil},
		"for ever":    {bytes.SplitAfterN(bytes.Repeat(answer(rcRetry, 10), 40), []byte{9, 0x22}, -1), nil},
	} {
		got, err := answering(t, x.answers...).Send(ask)
		if !bytes.Equal(got, x.want) || (err != nil) != (x.want == nil) {
			t.Errorf("%s: %x, %v, want %x", what, got, err, x.want)
		}
	}
}

// TestAllocateRefused: only the byte that says so is success.
func TestAllocateRefused(t *testing.T) {
	banks := []eventlog.Bank{eventlog.SHA256}
	for what, x := range map[string]struct {
		a  []byte
		ok bool
	}{
		"done":    {answer(0, 24, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0), true},
		"no room": {answer(0, 15, 0, 0, 0, 0, 0), false},
		"refused": {answer(0x184, 10), false}, "short": {answer(0, 12, 0, 0), false},
	} {
		if err := answering(t, x.a).allocate(banks); (err == nil) != x.ok {
			t.Errorf("%s: %v", what, err)
		}
	}
}
