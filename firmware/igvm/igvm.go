// Package igvm reads IGVM files, which say page by page how the memory of a
// confidential guest is to be laid out, and predicts the SEV-SNP digest of a
// guest that is launched from one.
//
// Files are outside bytes: every offset and length is checked.
//
// Sources: "IGVM", github.com/microsoft/igvm, igvm_defs; "QEMU", backends/igvm.c;
// "SNP ABI", AMD publication 56860.
package igvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// ErrFormat is wrapped by every error about a file's content; ErrPlatform by those
// about files that are well made, but not for SEV-SNP under KVM.
var (
	ErrFormat   = errors.New("malformed IGVM file")
	ErrPlatform = errors.New("IGVM file")
)

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// Layout of a file (IGVM, IGVM_FIXED_HEADER and IGVM_VHS_VARIABLE_HEADER).
const (
	magic       = "IGVM"
	fixedSizeV1 = 24
	fixedSizeV2 = 32
	maxFile     = 256 << 20
	maxHeaders  = 1 << 20
)

// HeaderType is the type of a variable header.
type HeaderType uint32

// Types of variable headers that matter here (IGVM, IgvmVariableHeaderType).
const (
	TypeSupportedPlatform HeaderType = 0x1
	TypeGuestPolicy       HeaderType = 0x101
	TypeParameterArea     HeaderType = 0x301
	TypePageData          HeaderType = 0x302
	TypeParameterInsert   HeaderType = 0x303
	TypeVPContext         HeaderType = 0x304
	TypeRequiredMemory    HeaderType = 0x305
)

var typeNames = map[HeaderType]string{
	TypeSupportedPlatform: "supported platform",
	TypeGuestPolicy:       "guest policy",
	TypeParameterArea:     "parameter area",
	TypePageData:          "page data",
	TypeParameterInsert:   "parameter insert",
	TypeVPContext:         "VP context",
	TypeRequiredMemory:    "required memory",
	0x307:                 "VP count",
	0x309:                 "MADT",
	0x30a:                 "MMIO ranges",
	0x30b:                 "SNP ID block",
	0x30c:                 "memory map",
	0x30d:                 "error range",
	0x30e:                 "command line",
	0x313:                 "environment info",
}

func (t HeaderType) String() string {
	if n := typeNames[t]; n != "" {
		return n
	}
	return fmt.Sprintf("type %#x", uint32(t))
}

// Header is one variable header.
type Header struct {
	Type HeaderType
	Data []byte
}

// Platform types (IGVM, IgvmPlatformType).
const platformSNP = 2

// Platform is a platform that a file supports.
type Platform struct {
	Mask uint32 // the bit by which headers name it
	Type uint8
}

// File is a parsed file. It keeps the bytes that it was parsed from.
type File struct {
	Bytes     []byte
	Headers   []Header
	Platforms []Platform
}

// Is reports whether bytes begin as an IGVM file does.
func Is(b []byte) bool { return len(b) >= 4 && string(b[:4]) == magic }

var le = binary.LittleEndian

// Parse reads a file's headers and checks its checksum.
func Parse(b []byte) (*File, error) {
	if !Is(b) || len(b) < fixedSizeV1 || len(b) > maxFile {
		return nil, malformed("%d bytes without its signature", len(b))
	}
	version, off, size := le.Uint32(b[4:]), uint64(le.Uint32(b[8:])), uint64(le.Uint32(b[12:]))
	total, sum := le.Uint32(b[16:]), le.Uint32(b[20:])
	fixed := map[uint32]uint64{1: fixedSizeV1, 2: fixedSizeV2}[version]
	switch {
	case fixed == 0:
		return nil, malformed("version %d, must be 1 or 2", version)
	case uint64(total) != uint64(len(b)):
		return nil, malformed("its header says %d bytes, it has %d", total, len(b))
	case off < fixed || off+size > uint64(len(b)):
		return nil, malformed("variable headers at %#x+%#x leave the file", off, size)
	}
	if got := checksum(b, fixed, off, size); got != sum {
		return nil, malformed("checksum %#x, its headers have %#x", sum, got)
	}
	f := &File{Bytes: b}
	for p := off; p < off+size; {
		if off+size-p < 8 || len(f.Headers) == maxHeaders {
			return nil, malformed("%d bytes behind the last variable header", off+size-p)
		}
		t, n := HeaderType(le.Uint32(b[p:])), uint64(le.Uint32(b[p+4:]))
		if n > off+size-p-8 {
			return nil, malformed("variable header %d (%v) of %d bytes leaves the headers", len(f.Headers), t, n)
		}
		h := Header{t, b[p+8 : p+8+n]}
		f.Headers = append(f.Headers, h)
		if t == TypeSupportedPlatform {
			if n < 16 {
				return nil, malformed("a supported platform of %d bytes", n)
			}
			f.Platforms = append(f.Platforms, Platform{le.Uint32(h.Data), h.Data[5]})
		}
		p += 8 + (n+7)&^7
	}
	return f, nil
}

// checksum is CRC-32 over the fixed header, with a checksum of 0, and the
// variable headers (IGVM, calculate_checksum).
func checksum(b []byte, fixed, off, size uint64) uint32 {
	header := append([]byte(nil), b[:fixed]...)
	clear(header[20:24])
	return crc32.Update(crc32.ChecksumIEEE(header), crc32.IEEETable, b[off:off+size])
}
