// Package petest makes PE images for tests.
package petest

import (
	"bytes"
	"encoding/binary"
)

// Section is a section of an image.
type Section struct {
	Name string
	Data []byte
}

// Image makes the smallest image for x86-64 with sections in the order given.
func Image(sections ...Section) []byte {
	le := binary.LittleEndian
	const pe, optional, table, aligned = 0x40, 0xf0, 0x40 + 24 + 0xf0, 0x200
	head := (table + 40*len(sections) + aligned - 1) &^ (aligned - 1)
	b := make([]byte, head)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], pe)
	copy(b[pe:], "PE\x00\x00")
	le.PutUint16(b[pe+4:], 0x8664)
	le.PutUint16(b[pe+6:], uint16(len(sections)))
	le.PutUint16(b[pe+20:], optional)
	le.PutUint16(b[pe+24:], 0x20b)
	le.PutUint32(b[pe+24+60:], uint32(head))
	le.PutUint32(b[pe+24+108:], 16) // directories
	for i, s := range sections {
		raw := append(bytes.Clone(s.Data), make([]byte, (aligned-len(s.Data)%aligned)%aligned)...)
		h := b[table+40*i:]
		copy(h, s.Name)
		le.PutUint32(h[8:], uint32(len(s.Data)))
		le.PutUint32(h[12:], uint32(0x1000*(i+1)))
		le.PutUint32(h[16:], uint32(len(raw)))
		le.PutUint32(h[20:], uint32(len(b)))
		b = append(b, raw...)
	}
	return b
}

// Code is an image whose code is a text.
func Code(text string) []byte { return Image(Section{".text", []byte(text)}) }
