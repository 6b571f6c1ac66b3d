// Package authenticode works out the digests of PE images by which firmware measures what it
// starts: of all of an image but its signature.
//
// Source: Microsoft, Windows Authenticode Portable Executable Signature Format, "Calculating
// the PE Image Hash"; PE Format.
package authenticode

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"slices"
)

// ErrFormat is wrapped by errors about files that are not PE images.
var ErrFormat = errors.New("not a PE image")

// Offsets (PE Format, "Optional Header").
const (
	offPE          = 0x3c
	offSections    = 6 // from the signature
	offOptional    = 20
	offHeader      = 24 // of the optional header
	offHeaderSize  = 60 // from there
	offChecksum    = 64
	offDirectories = 96 // 112 in PE32+
	magicPlus      = 0x20b
	certificates   = 4 // the directory of signatures
	sectionSize    = 40
)

// Sum writes to a hash what of an image is measured, and returns the digest.
func Sum(image []byte, h hash.Hash) ([]byte, error) {
	le := binary.LittleEndian
	size := uint64(len(image))
	if size < offPE+4 {
		return nil, fmt.Errorf("%w: %d bytes", ErrFormat, size)
	}
	pe := uint64(le.Uint32(image[offPE:]))
	if pe+offHeader+offDirectories+8*(certificates+1)+16 > size || string(image[pe:pe+4]) != "PE\x00\x00" {
		return nil, fmt.Errorf("%w: there is no header", ErrFormat)
	}
	sections, optional := uint64(le.Uint16(image[pe+offSections:])), uint64(le.Uint16(image[pe+offOptional:]))
	header := pe + offHeader
	directories := header + offDirectories
	if le.Uint16(image[header:]) == magicPlus {
		directories += 16
	}
	checksum, entry := header+offChecksum, directories+8*certificates
	headers := uint64(le.Uint32(image[header+offHeaderSize:]))
	table := header + optional
	if headers < entry+8 || headers > size || table+sectionSize*sections > size {
		return nil, fmt.Errorf("%w: its header does not fit", ErrFormat)
	}
	h.Write(image[:checksum])
	h.Write(image[checksum+4 : entry])
	h.Write(image[entry+8 : headers])
	type part struct{ at, size uint64 }
	var list []part
	for i := range sections {
		s := image[table+sectionSize*i:]
		p := part{uint64(le.Uint32(s[20:])), uint64(le.Uint32(s[16:]))}
		if p.at+p.size > size {
			return nil, fmt.Errorf("%w: section %d goes beyond its end", ErrFormat, i)
		}
		if p.size > 0 {
			list = append(list, p)
		}
	}
	slices.SortStableFunc(list, func(a, b part) int { return cmp.Compare(a.at, b.at) })
	done := headers
	for _, p := range list {
		h.Write(image[p.at : p.at+p.size])
		done += p.size
	}
	end := size
	if signature := uint64(le.Uint32(image[entry+4:])); signature <= size {
		end -= signature
	}
	if end > done {
		h.Write(image[done:end])
	}
	return h.Sum(nil), nil
}
