package predict

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

// GPT reads of a disk's image what firmware measures of its partitions: the header, and the
// entries that are used (UEFI 2.10, section 5.3; TCG, section 10.4.4, UEFI_GPT_DATA). Sectors
// have 512 bytes.
func GPT(disk io.ReaderAt) ([]byte, error) {
	const (
		sector     = 512
		headerSize = 92
		maxEntries = 1024
		entrySize  = 128
	)
	bad := func(format string, args ...any) ([]byte, error) {
		return nil, fmt.Errorf("%w: the disk: %s", ErrInputs, fmt.Sprintf(format, args...))
	}
	le := binary.LittleEndian
	header := make([]byte, sector)
	if _, err := disk.ReadAt(header, sector); err != nil {
		return bad("its partition table cannot be read: %v", err)
	}
	if string(header[:8]) != "EFI PART" || le.Uint32(header[12:]) != headerSize {
		return bad("it has no GUID partition table")
	}
	sum := le.Uint32(header[16:])
	checked := append([]byte{}, header[:headerSize]...)
	clear(checked[16:20])
	if crc32.ChecksumIEEE(checked) != sum {
		return bad("the checksum of its partition table is wrong: firmware takes the copy at its end")
	}
	count, size := le.Uint32(header[80:]), le.Uint32(header[84:])
	if count > maxEntries || size != entrySize {
		return bad("its partition table has %d entries of %d bytes", count, size)
	}
	at := le.Uint64(header[72:])
	if at > 1<<32 {
		return bad("its partition entries lie at sector %d", at)
	}
	entries := make([]byte, int(count)*entrySize)
	if _, err := disk.ReadAt(entries, int64(at)*sector); err != nil {
		return bad("its partition entries cannot be read: %v", err)
	}
	out := le.AppendUint64(append([]byte{}, header[:headerSize]...), 0)
	n := uint64(0)
	for ; len(entries) > 0; entries = entries[entrySize:] {
		if [16]byte(entries) != [16]byte{} { // its type
			out = append(out, entries[:entrySize]...)
			n++
		}
	}
	le.PutUint64(out[headerSize:], n)
	return out, nil
}
