package ovmf

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// variable is one of a store of authenticated variables.
func variable(name string, state byte, data int) []byte {
	b := make([]byte, variableHeader)
	le := binary.LittleEndian
	le.PutUint16(b, variableStart)
	b[2] = state
	for _, c := range name + "\x00" {
		b = le.AppendUint16(b, uint16(c))
	}
	le.PutUint32(b[offNameSize:], uint32(len(b)-variableHeader))
	le.PutUint32(b[offDataSize:], uint32(data))
	b = append(b, make([]byte, data)...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func store(variables ...[]byte) *Image {
	b := append(make([]byte, 0x48), guidVariableStore[:]...)
	b = append(b, make([]byte, storeHeader-16)...)
	for _, v := range variables {
		b = append(b, v...)
	}
	return &Image{Bytes: append(b, 0xff, 0xff, 0xff)}
}

func TestPlatformKey(t *testing.T) {
	pk, kek := variable("PK", variableAdded, 1005), variable("KEK", variableAdded, 71)
	cut := store(kek, pk)
	cut.Bytes = cut.Bytes[:len(cut.Bytes)-800]
	for name, c := range map[string]struct {
		img  *Image
		want bool
	}{
		"no store":          {&Image{Bytes: make([]byte, 4096)}, false},
		"empty":             {store(), false},
		"with a PK":         {store(kek, pk), true},
		"other keys":        {store(kek, variable("PKI", variableAdded, 5)), false},
		"a deleted PK":      {store(variable("PK", 0x3c, 1005), kek), false},
		"behind its GUID":   {&Image{Bytes: append(bytes.Clone(guidVariableStore[:]), store(pk).Bytes...)}, true},
		"an empty PK":       {store(variable("PK", variableAdded, 0)), false},
		"cut off in the PK": {cut, false},
	} {
		if got := c.img.HasPlatformKey(); got != c.want {
			t.Errorf("%s: %t, want %t", name, got, c.want)
		}
	}
}

func FuzzPlatformKey(f *testing.F) {
	f.Add(store(variable("KEK", variableAdded, 7), variable("PK", variableAdded, 9)).Bytes)
	f.Fuzz(func(_ *testing.T, b []byte) { (&Image{Bytes: b}).HasPlatformKey() })
}
