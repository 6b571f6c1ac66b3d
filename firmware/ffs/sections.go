package ffs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"unicode/utf16"

	"github.com/ulikunitz/xz/lzma"

	"github.com/vmlatch/vmlatch/firmware/guid"
)

// GUIDLZMA marks a section that is compressed by LZMA (edk2,
// MdeModulePkg/Include/Guid/LzmaDecompress.h).
var GUIDLZMA = guid.MustParse("ee4e5898-3914-4259-9d6e-dc7bd79403cf")

// guidCRC32 marks a section that has a checksum before it (PI, section 3.2.5.7).
var guidCRC32 = guid.MustParse("fc1bcdb0-7d31-49aa-936a-a4600d9dd083")

var packings = map[guid.GUID]string{
	GUIDLZMA:  "LZMA",
	guidCRC32: "CRC32",
	guid.MustParse("a31280ad-481e-41b6-95e8-127f4c984779"): "Tiano",
	guid.MustParse("d42ae6bd-1352-4bfb-909a-ca72a6eae889"): "LZMA with x86 filter",
	guid.MustParse("3d532050-5cda-4fd0-879e-0f7f630d5afb"): "Brotli",
}

// SectionKind is the type of a section of a file (PI, table 3-5).
type SectionKind byte

// Types of sections.
const (
	sectionCompressed SectionKind = 0x01
	sectionGUIDed     SectionKind = 0x02
	SectionPE         SectionKind = 0x10
	SectionTE         SectionKind = 0x12
	sectionVersion    SectionKind = 0x14
	sectionName       SectionKind = 0x15
	sectionVolume     SectionKind = 0x17
)

var sectionKinds = map[SectionKind]string{
	sectionCompressed: "compressed", sectionGUIDed: "GUIDed", SectionPE: "PE32", 0x11: "PIC", SectionTE: "TE",
	0x13: "DXE depex", sectionVersion: "version", sectionName: "name", 0x16: "16-bit", sectionVolume: "volume",
	0x18: "freeform", 0x19: "raw", 0x1b: "PEI depex", 0x1c: "MM depex",
}

func (k SectionKind) String() string {
	if n := sectionKinds[k]; n != "" {
		return n
	}
	return fmt.Sprintf("type %#x", byte(k))
}

// Section is a part of a file, or of another section.
type Section struct {
	Kind    SectionKind
	Data    []byte    // without its header
	Packing string    // of a GUIDed or compressed section: "LZMA" and so on
	GUID    guid.GUID // of a GUIDed section
	Parts   []Section // of what it was unpacked to
	Volume  *Volume   // of a section that is a volume
	Opaque  string    // why it was not unpacked; "" if it was, or needs not
}

// Leaf finds the first section of a kind in a file, also in what is packed; nil if there is none.
func (f *File) Leaf(kind SectionKind) []byte { return leaf(f.Sections, kind) }

func leaf(list []Section, kind SectionKind) []byte {
	for i := range list {
		if list[i].Kind == kind {
			return list[i].Data
		}
		if b := leaf(list[i].Parts, kind); b != nil {
			return b
		}
	}
	return nil
}

// sections reads a list of sections.
func (u *unpacker) sections(b []byte, depth int) (list []Section, err error) {
	if depth > maxNested {
		return nil, errNested
	}
	for at := 0; at+sectionHeader <= len(b); {
		if u.parts--; u.parts < 0 {
			return list, errMany
		}
		size, body := uint64(u24(b[at:])), sectionHeader
		if size == extendedSize && at+largeSection <= len(b) {
			size, body = uint64(binary.LittleEndian.Uint32(b[at+4:])), largeSection
		}
		if size < uint64(body) || size > uint64(len(b)-at) {
			return list, fmt.Errorf("%w: a section at %#x has %d bytes", ErrFormat, at, size)
		}
		s := Section{Kind: SectionKind(b[at+3]), Data: b[at+body : at+int(size)]}
		switch s.Kind {
		case sectionGUIDed:
			err = u.guided(&s, body, depth)
		case sectionCompressed:
			if s.Packing, s.Opaque = "UEFI", "UEFI's own compression is not unpacked"; len(s.Data) > 4 &&
				s.Data[4] == 0 {
				s.Packing, s.Opaque = "none", ""
				s.Parts, err = u.sections(s.Data[5:], depth+1)
			}
		case sectionVolume:
			if p := Find(s.Data); len(p) > 0 && p[0].Offset == 0 {
				s.Volume = u.volume(s.Data[:p[0].Size], depth+1)
			} else {
				s.Opaque = "no volume"
			}
		}
		list = append(list, s)
		if err != nil {
			return list, err
		}
		at = align(at+int(size), 4)
	}
	return list, nil
}

// guided unpacks a GUIDed section (PI, section 3.2.5.7). header is the size
// of its common header.
func (u *unpacker) guided(s *Section, header, depth int) (err error) {
	if len(s.Data) < 20 {
		return fmt.Errorf("%w: a GUIDed section has no header", ErrFormat)
	}
	s.GUID = guid.GUID(s.Data[:16])
	s.Packing = packings[s.GUID]
	offset := int(binary.LittleEndian.Uint16(s.Data[16:])) - header
	if offset < 20 || offset > len(s.Data) {
		return fmt.Errorf("%w: the data of a GUIDed section lie outside", ErrFormat)
	}
	switch packed := s.Data[offset:]; s.GUID {
	case guidCRC32:
		s.Parts, err = u.sections(packed, depth+1)
	case GUIDLZMA:
		b, err := u.lzma(packed)
		if err != nil {
			return fmt.Errorf("%w: LZMA: %w", ErrFormat, err)
		}
		s.Parts, err = u.sections(b, depth+1)
		return err
	default:
		s.Opaque = "its packing is not known"
		if s.Packing != "" {
			s.Opaque = s.Packing + " is not unpacked"
		}
	}
	return err
}

// lzma unpacks a stream of the LZMA-alone format: properties, a dictionary's size, the size.
func (u *unpacker) lzma(b []byte) ([]byte, error) {
	if len(b) < lzma.HeaderLen {
		return nil, io.ErrUnexpectedEOF
	}
	if size := binary.LittleEndian.Uint64(b[5:]); size > uint64(u.left) {
		return nil, fmt.Errorf("%d bytes, at most %d are unpacked", size, maxUnpacked)
	}
	if window := binary.LittleEndian.Uint32(b[1:]); window > maxWindow {
		return nil, fmt.Errorf("its dictionary has %d bytes, at most %d may it have", window, maxWindow)
	}
	if u.streams--; u.streams < 0 {
		return nil, fmt.Errorf("there are more than %d compressed sections", maxStreams)
	}
	r, err := lzma.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	out, err := io.ReadAll(io.LimitReader(r, int64(u.left)+1))
	if len(out) > u.left {
		return nil, errors.New("too much is packed")
	}
	u.left -= len(out)
	return out, err
}

// text16 reads UTF-16LE up to its NUL.
func text16(b []byte) string {
	var units []uint16
	for i := 0; i+1 < len(b) && len(units) < 256; i += 2 {
		c := binary.LittleEndian.Uint16(b[i:])
		if c == 0 {
			break
		}
		units = append(units, c)
	}
	return string(utf16.Decode(units))
}

// version reads a version section: a build number, then text.
func version(b []byte) string {
	if len(b) < 2 {
		return ""
	}
	return text16(b[2:])
}
