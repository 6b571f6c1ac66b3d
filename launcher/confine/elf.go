package confine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
)

// image is what a 64-bit ELF program says of how it is loaded. The standard library's reader would
// bring that of debug information with it, which is larger than the rest of this package.
type image struct {
	interpreter string   // its loader; "" for a static program
	paths       []string // of libraries, as they stand there
}

var errELF = errors.New("is not a 64-bit ELF program")

// Of an ELF program (System V ABI, gABI 4.2, chapters 4 and 5).
const (
	elfIdent    = "\x7fELF\x02\x01" // 64 bits, little-endian
	headerSize  = 64
	segmentSize = 56
	maxSegments = 64
	maxText     = 64 << 10 // of the table of texts, and of the dynamic segment

	segLoad, segDynamic, segInterpreter              = 1, 2, 3
	dynStrings, dynStringsSize, dynRPath, dynRunPath = 5, 10, 15, 29
)

type segment struct {
	Type, Flags                                        uint32
	Offset, Address, Physical, Size, Memory, Alignment uint64
}

// readImage reads a program.
func readImage(r io.ReaderAt) (*image, error) {
	var h [headerSize]byte
	if n, _ := r.ReadAt(h[:], 0); n < headerSize || !bytes.HasPrefix(h[:], []byte(elfIdent)) {
		return nil, errELF
	}
	at := binary.LittleEndian.Uint64(h[32:])
	size, count := binary.LittleEndian.Uint16(h[54:]), binary.LittleEndian.Uint16(h[56:])
	if size != segmentSize || count > maxSegments {
		return nil, errELF
	}
	segments := make([]segment, count)
	table := io.NewSectionReader(r, int64(at&(1<<62-1)), int64(count)*segmentSize)
	if err := binary.Read(table, binary.LittleEndian, segments); err != nil {
		return nil, errELF
	}
	i := &image{}
	for _, s := range segments {
		switch s.Type {
		case segInterpreter:
			i.interpreter = text(read(r, s.Offset, min(s.Size, 4096)))
		case segDynamic:
			i.paths = libraryPaths(r, segments, read(r, s.Offset, min(s.Size, maxText)))
		}
	}
	return i, nil
}

// libraryPaths reads DT_RPATH and DT_RUNPATH.
func libraryPaths(r io.ReaderAt, segments []segment, dynamic []byte) (paths []string) {
	var at []uint64
	var strtab, size uint64
	for ; len(dynamic) >= 16; dynamic = dynamic[16:] {
		value := binary.LittleEndian.Uint64(dynamic[8:])
		switch binary.LittleEndian.Uint64(dynamic) {
		case dynStrings:
			strtab = value
		case dynStringsSize:
			size = value
		case dynRPath, dynRunPath:
			at = append(at, value)
		}
	}
	for _, s := range segments {
		if s.Type != segLoad || strtab < s.Address || strtab-s.Address >= s.Size {
			continue
		}
		for _, offset := range at {
			if offset < size {
				start := s.Offset + (strtab - s.Address) + offset
				paths = append(paths, strings.Split(text(read(r, start, min(size-offset, maxText))), ":")...)
			}
		}
	}
	return paths
}

// read reads what is there of a piece of a file.
func read(r io.ReaderAt, at, size uint64) []byte {
	b := make([]byte, size)
	n, _ := r.ReadAt(b, int64(at&(1<<62-1)))
	return b[:n]
}

// text is a text up to its end mark.
func text(b []byte) string {
	t, _, _ := bytes.Cut(b, []byte{0})
	return string(t)
}
