// Package eventlogtest writes event logs for tests.
package eventlogtest

import (
	"encoding/binary"

	"github.com/vmlatch/vmlatch/firmware/eventlog"
)

// Write makes a log with a header that names the banks, without padding. Without banks it makes one
// of SHA-1 alone, as of TPM 1.2.
func Write(banks []eventlog.Bank, events ...eventlog.Event) []byte {
	le := binary.LittleEndian
	var out []byte
	if banks != nil {
		data := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2)
		data = le.AppendUint32(data, uint32(len(banks)))
		for _, b := range banks {
			data = le.AppendUint16(le.AppendUint16(data, uint16(b)), uint16(b.Hash().Size()))
		}
		data = append(data, 0)
		out = le.AppendUint32(le.AppendUint32(nil, 0), uint32(eventlog.NoAction))
		out = append(le.AppendUint32(append(out, make([]byte, 20)...), uint32(len(data))), data...)
	}
	for _, e := range events {
		out = le.AppendUint32(le.AppendUint32(out, e.Index), uint32(e.Type))
		if banks == nil {
			out = append(out, e.Digests[eventlog.SHA1]...)
		} else {
			out = le.AppendUint32(out, uint32(len(e.Digests)))
			for _, b := range banks {
				if d := e.Digests[b]; d != nil {
					out = append(le.AppendUint16(out, uint16(b)), d...)
				}
			}
		}
		out = append(le.AppendUint32(out, uint32(len(e.Data))), e.Data...)
	}
	return out
}

// Hashed is an event that measures its own data.
func Hashed(index uint32, kind eventlog.Type, data string, banks ...eventlog.Bank) eventlog.Event {
	e := eventlog.Event{Index: index, Type: kind, Data: []byte(data), Digests: map[eventlog.Bank][]byte{}}
	for _, b := range banks {
		e.Digests[b] = b.Sum(e.Data)
	}
	return e
}
