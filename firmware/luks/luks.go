// Package luks reads how long the header area of a LUKS volume is. The area is all that says how
// the volume is encrypted: whoever may write it can turn encryption off. Its owner binds it by its
// hash, and who opens the volume uses a copy that has that hash.
//
// Source: LUKS1 On-Disk Format Specification 1.2.3; LUKS2 On-Disk Format Specification 1.1.4.
package luks

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"strconv"

	"github.com/vmlatch/vmlatch/firmware/smallfmt"
)

// ErrFormat is wrapped by errors about volumes that are not of LUKS.
var ErrFormat = errors.New("not a LUKS volume")

// Bounds of a header area, in bytes.
const (
	binarySize  = 4096
	maxMetadata = 4 << 20 // LUKS2 allows a copy of the header no more
	MaxHeader   = 128 << 20
	sector      = 512
)

var (
	magic  = []byte("LUKS\xba\xbe")
	offset = struct{ version, hdrSize, payload int }{6, 8, 104}
)

// Copy copies the header area of a volume, which may change meanwhile: what counts is the copy. It
// returns the copy's SHA-256 and length.
func Copy(to io.Writer, volume io.Reader) (sum [32]byte, n int64, err error) {
	h := sha256.New()
	out := io.MultiWriter(to, h)
	head, err := readHead(volume)
	if err != nil {
		return sum, 0, err
	}
	size, err := Size(head)
	if err != nil {
		return sum, 0, err
	}
	if size < int64(len(head)) {
		head = head[:size]
	}
	if _, err := out.Write(head); err != nil {
		return sum, 0, err
	}
	rest := size - int64(len(head))
	if m, err := io.CopyN(out, volume, rest); err != nil {
		return sum, 0, smallfmt.Errorf("%w: its header has %d bytes, of which %d are there: %w", ErrFormat, size,
			int64(len(head))+m, err)
	}
	return [32]byte(h.Sum(nil)), size, nil
}

// readHead reads as much of a volume as tells how long its header area is.
func readHead(volume io.Reader) ([]byte, error) {
	b := make([]byte, binarySize)
	if _, err := io.ReadFull(volume, b); err != nil {
		return nil, smallfmt.Errorf("%w: shorter than a header", ErrFormat)
	}
	if !bytes.HasPrefix(b, magic) || binary.BigEndian.Uint16(b[offset.version:]) != 2 {
		return b, nil
	}
	size := binary.BigEndian.Uint64(b[offset.hdrSize:])
	if size <= binarySize || size > maxMetadata {
		return nil, smallfmt.Errorf("%w: metadata of %d bytes", ErrFormat, size)
	}
	more := make([]byte, size-binarySize)
	if _, err := io.ReadFull(volume, more); err != nil {
		return nil, smallfmt.Errorf("%w: its metadata are cut off", ErrFormat)
	}
	return append(b, more...), nil
}

// Size is the length of the header area of a volume in bytes, by its first bytes: up to where its
// data begin.
func Size(head []byte) (int64, error) {
	if len(head) < binarySize || !bytes.HasPrefix(head, magic) {
		return 0, ErrFormat
	}
	var size uint64
	switch v := binary.BigEndian.Uint16(head[offset.version:]); v {
	case 1:
		size = uint64(binary.BigEndian.Uint32(head[offset.payload:])) * sector
	case 2:
		var err error
		if size, err = dataOffset(head[binarySize:]); err != nil {
			return 0, err
		}
	default:
		return 0, smallfmt.Errorf("%w of version 1 or 2, but of %d", ErrFormat, v)
	}
	if size < binarySize || size > MaxHeader {
		return 0, smallfmt.Errorf(
			"%w: its data begin at byte %d, must be at %d to %d",
			ErrFormat,
			size,
			binarySize,
			MaxHeader,
		)
	}
	return int64(size), nil
}

// dataOffset is where the data begin, by the metadata of LUKS2: the lowest offset of a segment. The
// owner's hash covers all of the metadata, so they need to be understood only as far as that.
func dataOffset(area []byte) (low uint64, err error) {
	end := bytes.IndexByte(area, 0)
	if end < 0 {
		return 0, smallfmt.Errorf("%w: its metadata have no end", ErrFormat)
	}
	offsets, err := segmentOffsets(area[:end])
	if err != nil || len(offsets) == 0 {
		return 0, smallfmt.Errorf("%w: its metadata cannot be read", ErrFormat)
	}
	for _, text := range offsets {
		n, err := strconv.ParseUint(text, 10, 63)
		if err != nil {
			return 0, smallfmt.Errorf("%w: a segment without an offset", ErrFormat)
		}
		if low == 0 || n < low {
			low = n
		}
	}
	return low, nil
}
