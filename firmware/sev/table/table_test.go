package table_test

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/table"
)

// TestTableRefused: lengths beyond the table, and bytes behind its last entry.
func TestTableRefused(t *testing.T) {
	a, b := table.GUIDDiskPassphrase, sev.MustGUID("736869e5-aaaa-4973-92ec-06879ce3da0b")
	good, err := table.Pack(
		[]table.Entry{{GUID: a, Data: []byte("0123456789")}, {GUID: b, Data: []byte("x")}},
	)
	if err != nil {
		t.Fatal(err)
	}
	const header, first = 20, 30 // bytes of a header, and of the first entry with it
	total := binary.LittleEndian.Uint32(good[16:])
	if total != header+first+header+1 || len(good) != 80 {
		t.Fatalf("table of %d bytes in %d, want 71 in 80", total, len(good))
	}
	put := func(at int, v uint32) []byte {
		t := slices.Clone(good)
		binary.LittleEndian.PutUint32(t[at:], v)
		return t
	}
	for name, c := range map[string]struct {
		bytes []byte
		say   string
	}{
		"nothing":                   {nil, "none here"},
		"19 bytes":                  {good[:19], "none here"},
		"another GUID":              {put(0, 1), "none here"},
		"total below the header":    {put(16, header-1), "length 19 does not fit"},
		"total beyond the bytes":    {put(16, 81), "length 81 does not fit"},
		"cut off":                   {good[:total-1], "does not fit"},
		"bytes behind the last":     {put(16, total+9), "9 bytes after the last entry"},
		"entry below its header":    {put(header+16, header-1), "length 19 leaves the table"},
		"entry beyond the table":    {put(header+16, total-header+1), "leaves the table"},
		"last beyond the table":     {put(header+first+16, header+2), "length 22 leaves the table"},
		"half a header behind":      {put(16, header+first+header-1), "19 bytes after the last entry"},
		"length of 4 GiB":           {put(header+16, 1<<32-1), "leaves the table"},
		"total of 4 GiB":            {put(16, 1<<32-1), "does not fit"},
		"first takes all but bytes": {put(header+16, total-header-3), "3 bytes after the last entry"},
	} {
		t.Run(name, func(t *testing.T) {
			entries, err := table.Parse(c.bytes)
			if !errors.Is(err, table.ErrTable) || !strings.Contains(err.Error(), c.say) || entries != nil {
				t.Errorf("%d entries, %v, want none and ErrTable with %q", len(entries), err, c.say)
			}
		})
	}
	if entries, err := table.Parse(put(16, header)[:header]); err != nil || len(entries) != 0 {
		t.Errorf("a table without entries: %v, %v, want none and nil", entries, err)
	}
	if entries, err := table.Parse(put(header+16, total-header)); err != nil || len(entries) != 1 ||
		len(entries[0].Data) != int(total)-2*header {
		t.Errorf("an entry up to the table's end: %v, %v, want it", entries, err)
	}
	if entries, err := table.Parse(good[:total]); err != nil || len(entries) != 2 ||
		string(entries[1].Data) != "x" {
		t.Errorf("without padding: %v, %v, want both entries", entries, err)
	}
}

func TestPackTableRefused(t *testing.T) {
	mark, zero := sev.MustGUID("1e74f542-71dd-4d66-963e-ef4287ff173b"), sev.GUID{}
	a := table.GUIDDiskPassphrase
	for name, entries := range map[string][]table.Entry{
		"none":               {},
		"the table's GUID":   {{GUID: mark}},
		"the zero GUID":      {{GUID: zero}},
		"twice":              {{GUID: a}, {GUID: sev.GUID{1}}, {GUID: a}},
		"one byte too large": {{GUID: a, Data: make([]byte, table.MaxSize-2*20+1)}},
	} {
		if b, err := table.Pack(entries); !errors.Is(err, table.ErrTable) {
			t.Errorf("%s: %d bytes, %v, want ErrTable", name, len(b), err)
		}
	}
	b, err := table.Pack([]table.Entry{{GUID: a, Data: make([]byte, table.MaxSize-2*20)}})
	if err != nil || len(b) != table.MaxSize {
		t.Errorf("as large as may be: %d bytes, %v, want %d", len(b), err, table.MaxSize)
	}
}

func TestTable(t *testing.T) {
	a, b := table.GUIDDiskPassphrase, sev.MustGUID("736869e5-aaaa-4973-92ec-06879ce3da0b")
	raw, err := table.Pack([]table.Entry{{a, []byte("one")}, {b, nil}})
	if err != nil {
		t.Fatal(err)
	}
	if len(raw)%16 != 0 {
		t.Errorf("%d bytes are not a multiple of 16", len(raw))
	}
	got, err := table.Parse(append(raw, 1, 2, 3))
	if err != nil || len(got) != 2 || string(got[0].Data) != "one" || got[1].GUID != b || len(got[1].Data) != 0 {
		t.Errorf("reads back as %v, %v", got, err)
	}
	if _, err := table.Pack([]table.Entry{{a, nil}, {a, nil}}); err == nil {
		t.Error("the same GUID twice is packed")
	}
	if _, err := table.Pack([]table.Entry{{a, make([]byte, table.MaxSize)}}); err == nil {
		t.Error("a table over the limit is packed")
	}
}

func FuzzParse(f *testing.F) {
	raw, _ := table.Pack([]table.Entry{{table.GUIDDiskPassphrase, []byte("one")}})
	f.Add(raw)
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = table.Parse(b) })
}
