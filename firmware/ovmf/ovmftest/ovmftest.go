// Package ovmftest makes firmware images for tests. They have the tables of an
// OVMF build, chosen one by one, around bytes that are not code: enough for
// everything that reads or measures firmware, and for nothing that runs it.
//
//	image := ovmftest.Image(ovmftest.HashArea(0x810c00, 0x400), ovmftest.ResetBlock(0x80b004))
//
// [AmdSev] and [Generic] make images with the tables of those builds of OVMF.
package ovmftest

import (
	"encoding/binary"
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/guid"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
)

// DefaultSize is the size in bytes of an image without [Size].
const DefaultSize = 64 << 10

// Option adds to an image or changes it.
type Option func(*builder)

type builder struct {
	size     int
	fill     func([]byte)
	entries  []entry
	metadata []byte // ends where the GUIDed table begins
	volumes  [][2]int
	vector   string // at the image's end
}

type entry struct {
	id      guid.GUID
	data    []byte
	pointer bool // data is the offset from the image's end of metadata
	at      int  // where that begins
}

// Size sets the image's size in bytes. It may be as small as the tables allow, and
// need not be a multiple of the page size.
func Size(n int) Option { return func(b *builder) { b.size = n } }

// Fill sets what stands around the tables, in place of bytes that differ from
// page to page.
func Fill(fill func(image []byte)) Option { return func(b *builder) { b.fill = fill } }

// Entry adds an entry to the GUIDed table.
func Entry(id guid.GUID, data ...byte) Option {
	return func(b *builder) { b.entries = append(b.entries, entry{id: id, data: data}) }
}

// HashArea adds the entry that says where the kernel hash table is loaded.
func HashArea(base, size uint32) Option { return Entry(ovmf.GUIDHashTable, words(base, size)...) }

// SecretArea adds the entry that says where the launch secret is loaded.
func SecretArea(base, size uint32) Option { return Entry(ovmf.GUIDSecretArea, words(base, size)...) }

// ResetBlock adds the entry that says where application processors start.
func ResetBlock(eip uint32) Option { return Entry(ovmf.GUIDResetBlock, words(eip)...) }

// SEVMetadata adds SEV metadata, and the entry that points to it. SEV-SNP needs it.
func SEVMetadata(sections ...ovmf.Section) Option {
	const header, item = 16, 12
	m := append([]byte("ASEV"), words(uint32(header+item*len(sections)), 1, uint32(len(sections)))...)
	for _, s := range sections {
		m = append(m, words(s.GPA, s.Size, uint32(s.Type))...)
	}
	return func(b *builder) { b.addMetadata(ovmf.GUIDSEVMetadata, m, 0) }
}

// TDXMetadata adds TDX metadata, and the entry that points to it.
func TDXMetadata(sections ...ovmf.TDXSection) Option {
	const header, item = 16, 32
	m := append([]byte("TDVF"), words(uint32(header+item*len(sections)), 1, uint32(len(sections)))...)
	for _, s := range sections {
		m = append(m, words(s.FileOffset, s.FileSize)...)
		m = binary.LittleEndian.AppendUint64(m, s.GPA)
		m = binary.LittleEndian.AppendUint64(m, s.Size)
		m = append(m, words(s.Type, s.Attributes)...)
	}
	// A GUID stands before it (TDX Virtual Firmware Design Guide, section 11.1).
	before := guid.MustParse("e9eaf9f3-168e-44d5-a8eb-7f4d8738f6ae")
	return func(b *builder) { b.addMetadata(ovmf.GUIDTDXMetadata, append(before[:], m...), len(before)) }
}

// Volume writes the header of a firmware volume into the image: of variables at
// offset 0, of the file system FFS2 elsewhere.
func Volume(offset, size int) Option {
	return func(b *builder) { b.volumes = append(b.volumes, [2]int{offset, size}) }
}

func (b *builder) addMetadata(id guid.GUID, m []byte, skip int) {
	at := len(b.metadata) + skip
	b.metadata = append(b.metadata, m...)
	b.entries = append(b.entries, entry{id: id, data: make([]byte, 4), pointer: true, at: at})
}

// ResetVector puts the beginning of edk2's at the image's end, as in images that boot.
func ResetVector() Option { return func(b *builder) { b.vector = "\x90\x90\xe9" } } // nop, nop, jmp

// Image makes an image. It panics if the tables do not fit the size, which is a
// mistake in the test.
func Image(options ...Option) []byte {
	b := &builder{size: DefaultSize, fill: numberPages}
	for _, o := range options {
		o(b)
	}
	const behind = 32 // bytes between the table and the image's end: the reset vector
	table := b.table(behind)
	if need := len(b.metadata) + len(table) + behind; need > b.size {
		panic(fmt.Sprintf("ovmftest: %d bytes of tables do not fit an image of %d", need, b.size))
	}
	image := make([]byte, b.size)
	b.fill(image)
	for _, v := range b.volumes {
		putVolume(image[v[0]:v[0]+v[1]], v[0] == 0)
	}
	end := len(image) - behind
	copy(image[end-len(table):], table)
	copy(image[end-len(table)-len(b.metadata):], b.metadata)
	copy(image[len(image)-16:], b.vector)
	return image
}

// table is the GUIDed table: entries, then the footer. Each has its length and its
// GUID behind its data (edk2, ResetVectorVtf0.asm).
func (b *builder) table(behind int) []byte {
	const trailer = 2 + 16
	if len(b.entries) == 0 {
		return nil
	}
	total := trailer
	for _, e := range b.entries {
		total += len(e.data) + trailer
	}
	var table []byte
	for _, e := range b.entries {
		if e.pointer {
			e.data = words(uint32(len(b.metadata) - e.at + total + behind))
		}
		table = append(table, e.data...)
		table = binary.LittleEndian.AppendUint16(table, uint16(len(e.data)+trailer))
		table = append(table, e.id[:]...)
	}
	footer := guid.MustParse("96b582de-1fb2-45f7-baea-a366c55a082d")
	table = binary.LittleEndian.AppendUint16(table, uint16(total))
	return append(table, footer[:]...)
}

// numberPages makes every page differ from the others and from zero.
func numberPages(image []byte) {
	for i := range image {
		image[i] = byte(i*7 + i>>12*13 + 1)
	}
}

// putVolume writes EFI_FIRMWARE_VOLUME_HEADER (PI specification, volume 3, section
// 3.2.1) without a block map, with its checksum.
func putVolume(b []byte, variables bool) {
	const header = 56
	fs := guid.MustParse("8c8ce578-8a3d-4f1c-9935-896185c32dd3")
	if variables {
		fs = guid.MustParse("fff12b8d-7696-4c8b-a985-2747075b4f50")
	}
	clear(b[:header])
	copy(b[16:], fs[:])
	le := binary.LittleEndian
	le.PutUint64(b[32:], uint64(len(b)))
	copy(b[40:], "_FVH")
	le.PutUint16(b[48:], header)
	sum := uint16(0)
	for i := 0; i < header; i += 2 {
		sum += le.Uint16(b[i:])
	}
	le.PutUint16(b[50:], -sum)
}

func words(values ...uint32) []byte {
	b := []byte{}
	for _, v := range values {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}
