package uefivar

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/guid"
)

// variable is one of a store, with so many bytes of data.
func variable(space guid.GUID, name string, state byte, data string) []byte {
	b := make([]byte, variableHeader)
	le := binary.LittleEndian
	le.PutUint16(b, variableStart)
	b[2] = state
	copy(b[offGUID:], space[:])
	for _, c := range name + "\x00" {
		b = le.AppendUint16(b, uint16(c))
	}
	le.PutUint32(b[offNameSize:], uint32(len(b)-variableHeader))
	le.PutUint32(b[offDataSize:], uint32(len(data)))
	b = append(b, data...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

func store(variables ...[]byte) []byte {
	all := append(bytes.Join(variables, nil), 0xff, 0xff, 0xff, 0xff)
	b := append(make([]byte, 0x48), GUIDStore[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(storeHeader+len(all)))
	b = append(b, formatted, healthy, 0, 0, 0, 0, 0, 0)
	return append(append(b, all...), 0xff, 0xff, 0xff)
}

func TestRead(t *testing.T) {
	pk := variable(GUIDGlobal, "PK", added, strings.Repeat("k", 1005))
	kek := variable(GUIDGlobal, "KEK", added, "kek")
	cut := store(kek, pk)
	for name, c := range map[string]struct {
		b    []byte
		want string // the names
		on   bool
	}{
		"empty":        {store(), "", false},
		"with a PK":    {store(kek, pk), "KEK PK", true},
		"other keys":   {store(kek, variable(GUIDGlobal, "PKI", added, "x")), "KEK PKI", false},
		"another's PK": {store(variable(GUIDImageSecurity, "PK", added, "x")), "PK", false},
		"a deleted PK": {store(variable(GUIDGlobal, "PK", 0x3c, "x"), kek), "KEK", false},
		"an empty PK":  {store(variable(GUIDGlobal, "PK", added, "")), "PK", false},
		"switched off": {
			store(pk, variable(GUIDSecureBootEnable, "SecureBootEnable", added, "\x00")), "PK SecureBootEnable", false,
		},
		"switched on": {
			store(pk, variable(GUIDSecureBootEnable, "SecureBootEnable", added, "\x01")), "PK SecureBootEnable", true,
		},
		"behind its GUID": {append(bytes.Clone(GUIDStore[:]), store(pk)...), "PK", true},
		"a PK that is being replaced": {
			store(variable(GUIDGlobal, "PK", going, "old"), variable(GUIDGlobal, "KEK", going, "old"), kek),
			"KEK PK", true,
		},
	} {
		s, err := Read(c.b)
		var names []string
		for _, v := range s {
			names = append(names, v.Name)
		}
		if got := strings.Join(names, " "); err != nil || got != c.want || s.SecureBoot() != c.on {
			t.Errorf("%s: %q, %t, %v; want %q, %t", name, got, s.SecureBoot(), err, c.want, c.on)
		}
	}
	long := variable(GUIDGlobal, "PK", added, "x")
	binary.LittleEndian.PutUint32(long[offDataSize:], 1<<31)
	for name, b := range map[string][]byte{
		"no store": make([]byte, 4096), "cut off in the PK": cut[:len(cut)-800], "nothing": nil,
		"cut off in its header": cut[:0x48+20], "a variable that is too long": store(long),
	} {
		if _, err := Read(b); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v, want ErrFormat", name, err)
		}
	}
}

func TestEvent(t *testing.T) {
	v := Variable{GUID: GUIDGlobal, Name: "SecureBoot", Data: []byte{1}}
	const want = "61dfe48bca93d211aa0d00e098032b8c0a000000000000000100000000000000" +
		"53006500630075007200650042006f006f00740001"
	if got := hex.EncodeToString(v.Event()); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(store(variable(GUIDGlobal, "KEK", added, "seven"), variable(GUIDGlobal, "PK", going, "nine")))
	f.Fuzz(func(_ *testing.T, b []byte) {
		s, _ := Read(b)
		for i := range s {
			_ = s[i].Event()
		}
	})
}
