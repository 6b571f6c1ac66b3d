package report

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
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
	GUIDVCEK = inText("63da758d-e664-4564-adc5-f4b93be8accd")
	GUIDVLEK = inText("a8074bc2-a25a-483e-aae6-39c045a0b8a1")
	GUIDASK  = inText("4ab7b379-bbac-4fe4-a02f-05aef327c782")
	GUIDARK  = inText("c0b406a4-a803-4952-9743-3fb6014cd0ae")
)

// inText are the bytes of a GUID in the order of its text; package guid has them as firmware does.
func inText(s string) [16]byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil {
		panic(err)
	}
	return [16]byte(b)
}

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
