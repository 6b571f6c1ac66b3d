// Package ffs reads UEFI firmware volumes: their files, the sections of these, and the volumes that
// are packed inside.
//
// An image is bytes from outside: every offset and length is checked, and so is how much is
// unpacked. Errors wrap [ErrFormat].
//
// Source: "PI" is UEFI Platform Initialization Specification 1.8, volume 3.
package ffs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"github.com/vmlatch/vmlatch/firmware/guid"
)

// Bounds of what is unpacked, so that a small file cannot take the machine's memory.
const (
	maxUnpacked = 256 << 20 // bytes, of all compressed sections together
	maxNested   = 8         // volumes and compressed sections inside each other
	maxParts    = 100_000   // files and sections
	maxStreams  = 64        // compressed sections
	maxWindow   = 64 << 20  // bytes of memory that one of them may ask for
)

// FileType is the type of a file in a volume (PI, table 3-3).
type FileType byte

// Types that a reader of contents looks for.
const (
	fileRaw    FileType = 0x01
	FileVolume FileType = 0x0b
	FilePad    FileType = 0xf0
)

var fileTypes = map[FileType]string{
	fileRaw: "raw", 0x02: "freeform", 0x03: "SEC core", 0x04: "PEI core", 0x05: "DXE core", 0x06: "PEI module",
	0x07: "driver", 0x08: "PEI module and driver", 0x09: "application", 0x0a: "MM driver", FileVolume: "volume",
	0x0c: "MM driver and driver", 0x0d: "MM core", FilePad: "padding",
}

func (t FileType) String() string {
	if n := fileTypes[t]; n != "" {
		return n
	}
	return fmt.Sprintf("type %#x", byte(t))
}

// File is a file of a volume.
type File struct {
	GUID     guid.GUID
	Type     FileType
	Name     string // of its name section
	Version  string // of its version section
	Offset   int    // in its volume
	Size     int    // with its header
	Sections []Section
}

// ErrFormat is wrapped by errors about structures that do not fit.
var ErrFormat = errors.New("firmware volume")

// Place is where a volume lies (PI, section 3.2.1, EFI_FIRMWARE_VOLUME_HEADER).
type Place struct {
	Offset     int
	Size       int
	FileSystem guid.GUID
}

var fileSystems = map[guid.GUID]string{
	guid.MustParse("8c8ce578-8a3d-4f1c-9935-896185c32dd3"): "FFS2",
	guid.MustParse("5473c07a-3dcb-4dca-bd6f-1e9689e7349a"): "FFS3",
	guid.MustParse("fff12b8d-7696-4c8b-a985-2747075b4f50"): "variables",
}

// Kind is the file system's name, or its GUID.
func (p Place) Kind() string {
	if n := fileSystems[p.FileSystem]; n != "" {
		return n
	}
	return p.FileSystem.String()
}

const (
	volumeHeader    = 56 // up to the block map
	volumeAlignment = 8
	shortHeader     = 1 << 10 // with its block map, which has one entry in practice
)

// Find finds the volumes in bytes, each by its signature, its length and its header's checksum.
// Volumes inside others are not looked for.
func Find(b []byte) []Place {
	var found []Place
	le := binary.LittleEndian
	long := 8 * len(b)
	for off := 0; off+volumeHeader <= len(b); {
		size, header := le.Uint64(b[off+offVolumeLength:]), int(le.Uint16(b[off+offHeaderLength:]))
		if string(b[off+40:off+44]) != "_FVH" || size < volumeHeader || size > uint64(len(b)-off) ||
			header < volumeHeader || header > int(size) || header%2 != 0 || !sums(b[off:off+header], &long) {
			off += volumeAlignment
			continue
		}
		found = append(found, Place{Offset: off, Size: int(size), FileSystem: guid.GUID(b[off+16 : off+32])})
		off = align(off+int(size), volumeAlignment)
	}
	return found
}

// sums reports whether a header's checksum is right. Of long ones it adds up so many bytes in all,
// or bytes that are all headers would take their square in time.
func sums(header []byte, long *int) bool {
	if len(header) > shortHeader {
		if *long -= len(header); *long < 0 {
			return false
		}
	}
	return sum16(header) == 0
}

func sum16(b []byte) (sum uint16) {
	for i := 0; i+1 < len(b); i += 2 {
		sum += binary.LittleEndian.Uint16(b[i:])
	}
	return sum
}

// Volume is a volume and what it holds.
type Volume struct {
	Place
	Name  guid.GUID // zero if it has none
	Bytes []byte
	Files []File
	// Damage is why files are missing, or sections of them; nil if all was read.
	Damage error
}

// Read takes the volumes in bytes apart, with those inside them. A volume of another file system,
// as one for variables, has no files. What cannot be read is said by the volume's Damage.
func Read(b []byte) []*Volume {
	var list []*Volume
	u := &unpacker{left: maxUnpacked, parts: maxParts, streams: maxStreams}
	for _, p := range Find(b) {
		v := u.volume(b[p.Offset:p.Offset+p.Size], 0)
		v.Offset = p.Offset
		list = append(list, v)
	}
	return list
}

// Files are all files, each with the volumes that lead to it, the outermost first. Those of a
// volume that is packed in a file stand behind this file.
func Files(list []*Volume) iter.Seq2[[]*Volume, *File] {
	return func(yield func([]*Volume, *File) bool) { files(nil, list, yield) }
}

func files(path, list []*Volume, yield func([]*Volume, *File) bool) bool {
	for _, v := range list {
		path := append(path[:len(path):len(path)], v)
		for i := range v.Files {
			if !yield(path, &v.Files[i]) || !files(path, v.Files[i].Volumes(), yield) {
				return false
			}
		}
	}
	return true
}

// Volumes are the volumes that a file holds.
func (f *File) Volumes() (list []*Volume) { return volumes(f.Sections, nil) }

func volumes(sections []Section, list []*Volume) []*Volume {
	for i := range sections {
		if v := sections[i].Volume; v != nil {
			list = append(list, v)
		}
		list = volumes(sections[i].Parts, list)
	}
	return list
}

// All are volumes, with those inside them.
func All(list []*Volume) (all []*Volume) {
	for _, v := range list {
		all = append(all, v)
		for i := range v.Files {
			all = append(all, All(v.Files[i].Volumes())...)
		}
	}
	return all
}

// unpacker takes volumes apart within bounds.
type unpacker struct {
	left    int // bytes that may still be unpacked
	parts   int
	streams int
}

var (
	errNested = fmt.Errorf("%w: volumes lie more than %d deep inside each other", ErrFormat, maxNested)
	errMany   = fmt.Errorf("%w: more than %d files and sections", ErrFormat, maxParts)
)

// Offsets (PI, sections 3.2.1 and 3.2.3).
const (
	offVolumeLength = 32
	offHeaderLength = 48
	offExtended     = 52
	fileHeader      = 24
	largeFileHeader = 32
	fileAlignment   = 8
	largeFile       = 0x01 // attribute
	sectionHeader   = 4
	largeSection    = 8
	extendedSize    = 0xffffff
)

func u24(b []byte) int { return int(b[0]) | int(b[1])<<8 | int(b[2])<<16 }

// volume reads a volume, of which b is all.
func (u *unpacker) volume(b []byte, depth int) *Volume {
	v := &Volume{Place: Place{Size: len(b), FileSystem: guid.GUID(b[16:32])}, Bytes: b}
	if depth > maxNested {
		v.Damage = errNested
	} else if v.Kind() == "FFS2" || v.Kind() == "FFS3" {
		v.Damage = u.files(v, depth)
	}
	return v
}

func (u *unpacker) files(v *Volume, depth int) (damage error) {
	le, b := binary.LittleEndian, v.Bytes
	at := int(le.Uint16(b[offHeaderLength:]))
	if ext := int(le.Uint16(b[offExtended:])); ext != 0 {
		if ext < volumeHeader || ext+20 > len(b) {
			return fmt.Errorf("%w: its extended header lies outside", ErrFormat)
		}
		v.Name = guid.GUID(b[ext : ext+16])
		size := le.Uint32(b[ext+16:])
		if size < 20 || uint64(size) > uint64(len(b)-ext) {
			return fmt.Errorf("%w: its extended header does not fit", ErrFormat)
		}
		at = max(at, ext+int(size))
	}
	for at = align(at, fileAlignment); at+fileHeader <= len(b); {
		header := b[at : at+fileHeader]
		if len(bytes.Trim(header, "\xff")) == 0 { // free space
			break
		}
		if u.parts--; u.parts < 0 {
			return errMany
		}
		f := File{GUID: guid.GUID(header[:16]), Type: FileType(header[18]), Offset: at}
		size, body := uint64(u24(header[20:])), fileHeader
		if header[19]&largeFile != 0 && v.Kind() == "FFS3" {
			if body = largeFileHeader; at+body > len(b) {
				return fmt.Errorf("%w: the file at %#x is cut off", ErrFormat, at)
			}
			size = le.Uint64(b[at+fileHeader:])
		}
		if size < uint64(body) || size > uint64(len(b)-at) {
			return fmt.Errorf("%w: the file at %#x, %v, has %d bytes", ErrFormat, at, f.GUID, size)
		}
		f.Size = int(size)
		if f.Type != FilePad && f.Type != fileRaw {
			var err error
			if f.Sections, err = u.sections(b[at+body:at+f.Size], depth); err != nil && damage == nil {
				damage = fmt.Errorf("the file at %#x, %v: %w", at, f.GUID, err)
			}
			f.Name, f.Version = text16(leaf(f.Sections, sectionName)), version(leaf(f.Sections, sectionVersion))
		}
		v.Files = append(v.Files, f)
		at = align(at+f.Size, fileAlignment)
	}
	return damage
}

func align(n, to int) int { return (n + to - 1) &^ (to - 1) }
