// Package table is the table of secrets that a guest of SEV or SEV-ES finds in its memory, after
// its platform has decrypted them.
package table

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"

	"github.com/vmlatch/vmlatch/firmware/guid"
	"github.com/vmlatch/vmlatch/firmware/smallfmt"
)

// MaxSize is the longest table that LAUNCH_SECRET takes, in bytes (SEV API, chapter 6.6).
const MaxSize = 16 << 10

// Entries of the table of secrets that SEV guests find in their memory.
var (
	// GUIDDiskPassphrase is the entry that grub and guests read a disk key from (Linux,
	// drivers/virt/coco/efi_secret; grub, efisecret).
	GUIDDiskPassphrase = guid.MustParse("736869e5-84f0-4973-92ec-06879ce3da0b")
	// GUIDInjected is the entry by which the owner's broker vouches for the others.
	GUIDInjected = guid.MustParse("5f9e5e5a-6d2b-8c71-9d4e-3b1f0a7c2e64")
)

// Named is the entry of a secret by its name: "disk" is the well-known one, and others follow
// from their names (RFC 9562, version 8, over SHA-256).
func Named(name string) guid.GUID {
	if name == "disk" {
		return GUIDDiskPassphrase
	}
	sum := sha256.Sum256([]byte("vmlatch secret " + name))
	sum[7] = sum[7]&0x0f | 0x80 // the version is in the high byte of a little-endian field
	sum[8] = sum[8]&0x3f | 0x80
	return guid.GUID(sum[:16])
}

// Entry is one secret in the table that the guest finds.
type Entry struct {
	GUID guid.GUID
	Data []byte
}

// guidTable marks a table (Linux, drivers/virt/coco/efi_secret; OVMF, AmdSev/SecretDxe).
var guidTable = guid.MustParse("1e74f542-71dd-4d66-963e-ef4287ff173b")

const entryHeader = 16 + 4 // GUID, u32 length that counts the header too

// ErrTable is wrapped by errors about a secret table's content.
var ErrTable = errors.New("secret table")

// Pack lays secrets out as the guest reads them, padded with zeros to 16
// bytes. The same GUID twice is an error: a reader would find only one.
func Pack(entries []Entry) ([]byte, error) {
	if len(entries) == 0 {
		return nil, smallfmt.Errorf("%w: no entries", ErrTable)
	}
	total := entryHeader
	for i, e := range entries {
		if slices.ContainsFunc(entries[:i], func(o Entry) bool { return o.GUID == e.GUID }) {
			return nil, smallfmt.Errorf("%w: %v is given twice", ErrTable, e.GUID.String())
		}
		if e.GUID == guidTable || e.GUID == (guid.GUID{}) {
			return nil, smallfmt.Errorf("%w: %v is the table's own mark", ErrTable, e.GUID.String())
		}
		total += entryHeader + len(e.Data)
	}
	if total > MaxSize {
		return nil, smallfmt.Errorf("%w: %d bytes, at most %d fit", ErrTable, total, MaxSize)
	}
	t := make([]byte, 0, (total+15)&^15) // as large as needed: secrets are never copied away
	t = append(t, guidTable[:]...)
	t = binary.LittleEndian.AppendUint32(t, uint32(total))
	for _, e := range entries {
		t = append(t, e.GUID[:]...)
		t = binary.LittleEndian.AppendUint32(t, uint32(entryHeader+len(e.Data)))
		t = append(t, e.Data...)
	}
	return t[:cap(t)], nil
}

// Parse reads a table, ignoring what follows its end.
func Parse(b []byte) ([]Entry, error) {
	if len(b) < entryHeader || guid.GUID(b[:16]) != guidTable {
		return nil, smallfmt.Errorf("%w: none here", ErrTable)
	}
	total := binary.LittleEndian.Uint32(b[16:])
	if total < entryHeader || uint64(total) > uint64(len(b)) {
		return nil, smallfmt.Errorf("%w: length %d does not fit %d bytes", ErrTable, total, len(b))
	}
	var entries []Entry
	for b = b[entryHeader:total]; len(b) > 0; {
		if len(b) < entryHeader {
			return nil, smallfmt.Errorf("%w: %d bytes after the last entry", ErrTable, len(b))
		}
		size := binary.LittleEndian.Uint32(b[16:])
		if size < entryHeader || uint64(size) > uint64(len(b)) {
			return nil, smallfmt.Errorf("%w: an entry's length %d leaves the table", ErrTable, size)
		}
		entries = append(entries, Entry{GUID: guid.GUID(b[:16]), Data: b[entryHeader:size]})
		b = b[size:]
	}
	return entries, nil
}
