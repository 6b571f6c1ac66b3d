package ovmf

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/guid"
	"github.com/vmlatch/vmlatch/firmware/internal/mapfile"
)

// ErrFormat is wrapped by every error about an image's content.
var ErrFormat = errors.New("malformed firmware image")

// Error says what part of an image is wrong.
type Error struct {
	Part string // "GUIDed table", "SEV metadata", …
	Msg  string
}

func (e *Error) Error() string { return "firmware image: " + e.Part + ": " + e.Msg }

// Unwrap returns ErrFormat.
func (e *Error) Unwrap() error { return ErrFormat }

func malformed(part, format string, args ...any) error {
	return &Error{Part: part, Msg: fmt.Sprintf(format, args...)}
}

// GUIDs of the table and its entries (ResetVector, ResetVectorVtf0.asm).
var (
	guidFooter      = guid.MustParse("96b582de-1fb2-45f7-baea-a366c55a082d")
	GUIDResetBlock  = guid.MustParse("00f771de-1a7e-4fcb-890e-68c77e2fb44e") // u32 AP reset EIP
	GUIDHashTable   = guid.MustParse("7255371f-3a3b-4b04-927b-1da6efa8d454") // u32 base, u32 size
	GUIDSecretArea  = guid.MustParse("4c2eb361-7d9b-4cc3-8081-127c90d3d294") // u32 base, u32 size
	GUIDSEVMetadata = guid.MustParse("dc886566-984a-4798-a75e-5585a7bf67cc") // u32 offset from the end
	GUIDTDXMetadata = guid.MustParse("e47a6535-984a-4798-865e-4685a7bf8ec2") // u32 offset from the end
)

const (
	tableEndOffset = 32     // bytes between the footer's end and the image's
	entryHeader    = 2 + 16 // u16 length, GUID; both stand behind the data
	maxImage       = 64 << 20
	maxSections    = 256 // of metadata; builds have a dozen
)

// Entry is one entry of the GUIDed table.
type Entry struct {
	GUID guid.GUID
	Data []byte // without length and GUID
}

// Area is a range of guest-physical addresses.
type Area struct{ Base, Size uint32 }

// Section is one section of SEV metadata.
type Section struct {
	GPA, Size uint32
	Type      SectionType
}

// SectionType says what a section is loaded with.
type SectionType uint32

// Types of SEV metadata sections (ResetVector, OvmfMetadata.asm).
const (
	SectionMemory       SectionType = 1 // zero pages, validated before start
	SectionSecrets      SectionType = 2 // the SNP secrets page
	SectionCPUID        SectionType = 3 // the SNP CPUID page
	SectionSVSMCAA      SectionType = 4 // SVSM calling area
	SectionKernelHashes SectionType = 0x10
)

// TDXSection is one section of TDX metadata.
type TDXSection struct {
	FileOffset, FileSize uint32
	GPA, Size            uint64
	Type, Attributes     uint32
}

// Image is a parsed firmware image. It keeps the bytes that it was parsed from.
type Image struct {
	Bytes   []byte
	Entries []Entry // in the order of the walk, last entry of the file first
}

// ReadFile maps an image file for Parse, for as long as the process lives. If the
// file becomes shorter meanwhile its use faults; a program that wants to say so
// calls debug.SetPanicOnFault and looks at the panic with IsShortened.
func ReadFile(name string) ([]byte, error) { return mapfile.Read(name) }

// WithFile calls a function with an image file's content, which it must neither
// change nor keep. A file that becomes shorter meanwhile is an error.
func WithFile(name string, use func([]byte) error) error { return mapfile.With(name, use) }

// IsShortened reports whether a panic comes from a file of ReadFile that became shorter.
func IsShortened(panicked any) bool { return mapfile.IsChange(panicked) }

// Parse reads an image's GUIDed table. An image without a table parses to one
// without entries; a table that is broken is an *Error.
func Parse(b []byte) (*Image, error) {
	img := &Image{Bytes: b}
	if len(b) == 0 || len(b) > maxImage {
		return nil, malformed("image", "%d bytes, must be 1 to %d", len(b), maxImage)
	}
	end := len(b) - tableEndOffset
	if end < entryHeader || guid.GUID(b[end-16:end]) != guidFooter {
		return img, nil
	}
	total := int(binary.LittleEndian.Uint16(b[end-entryHeader:]))
	if total < entryHeader || total > end {
		return nil, malformed("GUIDed table", "length %d does not fit the image", total)
	}
	first, p := end-total, end-entryHeader
	for p > first {
		if p-first < entryHeader {
			return nil, malformed("GUIDed table", "%d bytes before the first entry", p-first)
		}
		size := int(binary.LittleEndian.Uint16(b[p-entryHeader:]))
		if size < entryHeader || size > p-first {
			return nil, malformed("GUIDed table", "an entry's length %d leaves the table", size)
		}
		img.Entries = append(img.Entries, Entry{GUID: guid.GUID(b[p-16 : p]), Data: b[p-size : p-entryHeader]})
		p -= size
	}
	return img, nil
}

// Entry returns the data of the first entry with the GUID.
func (img *Image) Entry(g guid.GUID) ([]byte, bool) {
	for _, e := range img.Entries {
		if e.GUID == g {
			return e.Data, true
		}
	}
	return nil, false
}

func (img *Image) area(g guid.GUID, part string) (Area, bool, error) {
	d, ok := img.Entry(g)
	if !ok {
		return Area{}, false, nil
	}
	if len(d) != 8 {
		return Area{}, false, malformed(part, "entry of %d bytes, must be 8", len(d))
	}
	a := Area{binary.LittleEndian.Uint32(d), binary.LittleEndian.Uint32(d[4:])}
	if uint64(a.Base)+uint64(a.Size) > 1<<32 {
		return Area{}, false, malformed(part, "%#x+%#x leaves the first 4 GiB", a.Base, a.Size)
	}
	return a, true, nil
}

// HashArea returns where the firmware wants the kernel hash table. Its size is
// 0 in builds that have the entry but do not check kernels.
func (img *Image) HashArea() (a Area, ok bool, err error) {
	return img.area(GUIDHashTable, "hash table")
}

// SecretArea returns where the firmware wants the launch secret.
func (img *Image) SecretArea() (a Area, ok bool, err error) {
	return img.area(GUIDSecretArea, "secret area")
}

// ResetEIP returns the address at which application processors start.
func (img *Image) ResetEIP() (eip uint32, ok bool, err error) {
	d, ok := img.Entry(GUIDResetBlock)
	if !ok {
		return 0, false, nil
	}
	if len(d) != 4 {
		return 0, false, malformed("SEV-ES reset block", "entry of %d bytes, must be 4", len(d))
	}
	return binary.LittleEndian.Uint32(d), true, nil
}

// locate finds metadata by the entry that holds its offset from the end.
func (img *Image) locate(g guid.GUID, part, magic string, header int) ([]byte, error) {
	d, ok := img.Entry(g)
	if !ok {
		return nil, nil
	}
	if len(d) != 4 {
		return nil, malformed(part, "entry of %d bytes, must be 4", len(d))
	}
	back := int(binary.LittleEndian.Uint32(d))
	if back < header || back > len(img.Bytes) {
		return nil, malformed(part, "offset %#x from the end leaves the image", back)
	}
	b := img.Bytes[len(img.Bytes)-back:]
	if string(b[:4]) != magic {
		return nil, malformed(part, "signature is %q, must be %q", b[:4], magic)
	}
	return b, nil
}

// metadata returns the items of metadata, each of so many bytes; nil if the image
// has none. Both kinds begin with a signature, their length, a version and a count.
func (img *Image) metadata(g guid.GUID, part, magic string, item int) ([]byte, error) {
	const header = 16
	b, err := img.locate(g, part, magic, header)
	if b == nil || err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	length, version, count := le.Uint32(b[4:]), le.Uint32(b[8:]), le.Uint32(b[12:])
	if version != 1 {
		return nil, malformed(part, "version %d, must be 1", version)
	}
	end := header + uint64(count)*uint64(item)
	if count > maxSections || uint64(length) > uint64(len(b)) || end > uint64(length) {
		return nil, malformed(part, "%d sections do not fit %d bytes", count, length)
	}
	return b[header:end], nil
}

// SEVMetadata returns the sections of "ASEV" metadata in the table's order,
// which the SNP digest depends on; none when the image has no such metadata.
func (img *Image) SEVMetadata() ([]Section, error) {
	const part, item = "SEV metadata", 12
	items, err := img.metadata(GUIDSEVMetadata, part, "ASEV", item)
	if err != nil || items == nil {
		return nil, err
	}
	le := binary.LittleEndian
	sections := make([]Section, len(items)/item)
	for i := range sections {
		s := items[i*item:]
		sections[i] = Section{GPA: le.Uint32(s), Size: le.Uint32(s[4:]), Type: SectionType(le.Uint32(s[8:]))}
		if uint64(sections[i].GPA)+uint64(sections[i].Size) > 1<<32 {
			return nil, malformed(part, "section %d leaves the first 4 GiB", i)
		}
	}
	return sections, nil
}

// TDXMetadata returns the sections of "TDVF" metadata in the table's order
// (Intel, TDX Virtual Firmware Design Guide, section 11); none without metadata.
func (img *Image) TDXMetadata() ([]TDXSection, error) {
	const part, item = "TDX metadata", 32
	items, err := img.metadata(GUIDTDXMetadata, part, "TDVF", item)
	if err != nil || items == nil {
		return nil, err
	}
	le := binary.LittleEndian
	sections := make([]TDXSection, len(items)/item)
	for i := range sections {
		s := items[i*item:]
		t := TDXSection{
			FileOffset: le.Uint32(s), FileSize: le.Uint32(s[4:]),
			GPA: le.Uint64(s[8:]), Size: le.Uint64(s[16:]),
			Type: le.Uint32(s[24:]), Attributes: le.Uint32(s[28:]),
		}
		if uint64(t.FileOffset)+uint64(t.FileSize) > uint64(len(img.Bytes)) || t.GPA+t.Size < t.GPA {
			return nil, malformed(part, "section %d leaves the image or the address space", i)
		}
		sections[i] = t
	}
	return sections, nil
}
