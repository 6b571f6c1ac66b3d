package report

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// MaxTable is the longest certificate table that is read, in bytes.
const MaxTable = 64 << 10

// ErrTable is wrapped by errors about certificate tables.
var ErrTable = errors.New("malformed certificate table")

// Entry is a certificate of a table.
type Entry struct {
	GUID [16]byte // in text order
	Data []byte
}

// GUIDs of certificates (GHCB specification, publication 56421, chapter 4.1.8.1), as bytes in
// the order of the text.
var (
	GUIDVCEK = [16]byte{
		0x63,
		0xda,
		0x75,
		0x8d,
		0xe6,
		0x64,
		0x45,
		0x64,
		0xad,
		0xc5,
		0xf4,
		0xb9,
		0x3b,
		0xe8,
		0xac,
		0xcd,
	}
	GUIDVLEK = [16]byte{
		0xa8,
		0x07,
		0x4b,
		0xc2,
		0xa2,
		0x5a,
		0x48,
		0x3e,
		0xaa,
		0xe6,
		0x39,
		0xc0,
		0x45,
		0xa0,
		0xb8,
		0xa1,
	}
	GUIDASK = [16]byte{
		0x4a,
		0xb7,
		0xb3,
		0x79,
		0xbb,
		0xac,
		0x4f,
		0xe4,
		0xa0,
		0x2f,
		0x05,
		0xae,
		0xf3,
		0x27,
		0xc7,
		0x82,
	}
	GUIDARK = [16]byte{
		0xc0,
		0xb4,
		0x06,
		0xa4,
		0xa8,
		0x03,
		0x49,
		0x52,
		0x97,
		0x43,
		0x3f,
		0xb6,
		0x01,
		0x4c,
		0xd0,
		0xae,
	}
)

const tableEntrySize = 24

// ParseTable reads the certificate table that comes with a report. The host has written it;
// released hosts leave it empty.
func ParseTable(b []byte) (entries []Entry, err error) {
	if len(b) > MaxTable {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTable, len(b), MaxTable)
	}
	for at := 0; ; at += tableEntrySize {
		if len(b) == 0 {
			return nil, nil
		}
		if at+tableEntrySize > len(b) {
			return nil, fmt.Errorf("%w: it has no end", ErrTable)
		}
		var e Entry
		copy(e.GUID[:], b[at:])
		off := uint64(binary.LittleEndian.Uint32(b[at+16:]))
		size := uint64(binary.LittleEndian.Uint32(b[at+20:]))
		if e.GUID == [16]byte{} && off == 0 && size == 0 {
			return entries, nil
		}
		if off+size > uint64(len(b)) {
			return nil, fmt.Errorf("%w: a certificate ends at byte %d of %d", ErrTable, off+size, len(b))
		}
		e.Data = b[off : off+size]
		entries = append(entries, e)
	}
}

// Endorsements are the certificates of a table that may endorse the key of a report.
func Endorsements(entries []Entry) (list [][]byte) {
	for _, e := range entries {
		if e.GUID == GUIDVCEK || e.GUID == GUIDVLEK {
			list = append(list, e.Data)
		}
	}
	return list
}
