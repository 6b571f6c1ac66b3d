package report

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
)

// table makes a certificate table.
func table(entries ...Entry) []byte {
	head := make([]byte, (len(entries)+1)*tableEntrySize)
	var data []byte
	for i, e := range entries {
		at := head[i*tableEntrySize:]
		copy(at, e.GUID[:])
		binary.LittleEndian.PutUint32(at[16:], uint32(len(head)+len(data)))
		binary.LittleEndian.PutUint32(at[20:], uint32(len(e.Data)))
		data = append(data, e.Data...)
	}
	return append(head, data...)
}

func TestTable(t *testing.T) {
	b := table(Entry{GUIDARK, []byte("ark")}, Entry{GUIDVLEK, []byte("vlek")}, Entry{GUIDASK, nil})
	entries, err := ParseTable(b)
	if err != nil || len(entries) != 3 || len(Endorsements(entries)) != 1 ||
		string(Endorsements(entries)[0]) != "vlek" {
		t.Errorf("%v, %v, want three entries, and the VLEK", entries, err)
	}
	for name, empty := range map[string][]byte{
		"no bytes": nil, "an end alone": make([]byte, 24), "a page": make([]byte, 4096),
	} {
		if entries, err := ParseTable(empty); err != nil || entries != nil || Endorsements(entries) != nil {
			t.Errorf("%s: %v, %v, want no entry", name, entries, err)
		}
	}
	edit := func(off int, v uint32) []byte {
		c := bytes.Clone(b)
		binary.LittleEndian.PutUint32(c[off:], v)
		return c
	}
	for name, bad := range map[string][]byte{
		"no end": b[:24], "cut": b[:30], "one byte": {0}, "offset beyond": edit(16, uint32(len(b))),
		"length beyond": edit(20, 1<<20),
		"sum overflows": edit(20, 0xffffffff), "too large": make([]byte, MaxTable+1), "data cut": b[:len(b)-1],
	} {
		if _, err := ParseTable(bad); (name != "data cut" || err == nil) && !errors.Is(err, ErrTable) {
			t.Errorf("%s: %v, want %v", name, err, ErrTable)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(make([]byte, Size))
	f.Fuzz(func(_ *testing.T, b []byte) {
		if r, err := Parse(b); err == nil {
			_ = r.Form()
		}
	})
}

func FuzzParseTable(f *testing.F) {
	f.Add(table(Entry{GUIDVCEK, []byte("x")}))
	f.Fuzz(func(_ *testing.T, b []byte) {
		entries, err := ParseTable(b)
		if err == nil {
			_ = Endorsements(entries)
		}
	})
}
