package tpmtest

import (
	"encoding/binary"
	"io"
	"net"
	"testing"
)

const headerSize = 10

// Answering is the way to a TPM that gives these answers, one for each command, and hangs up then.
func Answering(t testing.TB, answers ...[]byte) net.Conn {
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
	return own
}

// Answer is one with a code, that says it has so many bytes.
func Answer(code, size uint32, more ...byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, 0x8001)
	b = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, size), code)
	return append(b, more...)
}
