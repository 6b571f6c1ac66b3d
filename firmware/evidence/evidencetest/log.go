package evidencetest

import (
	"crypto/sha512"
	"encoding/binary"

	"github.com/vmlatch/vmlatch/firmware/authenticode"
	"github.com/vmlatch/vmlatch/firmware/tdx/ccel"
)

// Hashed is an event that measures its own data.
func Hashed(register int, kind uint32, data []byte) ccel.Event {
	return ccel.Event{Register: register, Type: kind, Digest: sha512.Sum384(data), Data: data}
}

// Log is an event log as firmware writes it, without the padding.
func Log(events ...ccel.Event) []byte {
	le := binary.LittleEndian
	head := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2)
	head = le.AppendUint32(head, 1) // one algorithm
	head = le.AppendUint16(le.AppendUint16(head, 0x0c), 48)
	head = append(head, 0)
	b := append(le.AppendUint32(le.AppendUint32(nil, 1), 3), make([]byte, 20)...)
	b = append(le.AppendUint32(b, uint32(len(head))), head...)
	for _, e := range events {
		b = le.AppendUint32(le.AppendUint32(b, uint32(e.Register+1)), e.Type)
		b = append(le.AppendUint16(le.AppendUint32(b, 1), 0x0c), e.Digest[:]...)
		b = append(le.AppendUint32(b, uint32(len(e.Data))), e.Data...)
	}
	return b
}

// DirectBoot are the events of a kernel that firmware of the newest profile boots directly.
func DirectBoot(kernel, initrd []byte, cmdline string) []ccel.Event {
	sum, err := authenticode.Sum(kernel, sha512.New384())
	if err != nil {
		panic(err)
	}
	line := []byte{}
	for _, c := range []byte("initrd=initrd " + cmdline + "\x00") {
		line = append(line, c, 0)
	}
	return []ccel.Event{
		{Register: 1, Type: 0x80000003, Digest: [48]byte(sum)},
		Hashed(1, 0x80000007, []byte("Calling EFI Application from Boot Option")),
		Hashed(1, 4, make([]byte, 4)),
		Hashed(1, 0x80000007, []byte("Exit Boot Services Invocation")),
		Hashed(1, 0x80000007, []byte("Exit Boot Services Returned with Success")),
		Hashed(2, 6, line),
		Hashed(2, 6, initrd),
	}
}
