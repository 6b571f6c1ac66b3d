package session

import (
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/vmlatch/vmlatch/firmware/guid"
	"github.com/vmlatch/vmlatch/firmware/sev"
)

// HeaderSize is the length of a packet's header: flags 4, IV 16, MAC 32
// (SEV API, chapter 6.6, table 61).
const HeaderSize = 52

// MaxSecret is the largest packet that LAUNCH_SECRET takes (SEV API, chapter 6.6).
const MaxSecret = 16 << 10

const flagCompressed = 1

// Errors that Open tells apart.
var (
	ErrPacketMAC  = errors.New("secret packet: not made with this session's keys for this measurement")
	ErrCompressed = errors.New("secret packet: compressed packets are not supported")
)

// Packet is a secret on its way into the guest.
type Packet struct {
	Header [HeaderSize]byte
	Data   []byte // encrypted, as long as the plaintext
}

// Seal encrypts a secret for the launch that gave the measurement. iv must
// never be used twice with the same keys.
func (k *Keys) Seal(plain []byte, iv [16]byte, m sev.Measurement) (Packet, error) {
	var p Packet
	if len(plain) == 0 || len(plain) > MaxSecret || len(plain)%16 != 0 {
		return p, fmt.Errorf("secret packet: %d bytes, must be a multiple of 16 up to %d", len(plain), MaxSecret)
	}
	copy(p.Header[4:], iv[:])
	p.Data = make([]byte, len(plain))
	ctr(k.TEK[:], iv[:], plain, p.Data)
	copy(p.Header[20:], k.packetMAC(&p, len(plain), m))
	return p, nil
}

// Open is the platform's side of Seal. guestLen is the length of the area in
// guest memory that the plaintext fills.
func (k *Keys) Open(p Packet, guestLen int, m sev.Measurement) ([]byte, error) {
	if !hmac.Equal(k.packetMAC(&p, guestLen, m), p.Header[20:]) {
		return nil, ErrPacketMAC
	}
	if p.Header[0]&flagCompressed != 0 {
		return nil, ErrCompressed
	}
	plain := make([]byte, len(p.Data))
	ctr(k.TEK[:], p.Header[4:20], p.Data, plain)
	return plain, nil
}

// packetMAC covers 0x01, flags, IV, both lengths, the data and the launch
// measurement's MAC (SEV API, chapter 6.6.2).
func (k *Keys) packetMAC(p *Packet, guestLen int, m sev.Measurement) []byte {
	le := binary.LittleEndian
	return mac(k.TIK[:], []byte{1}, p.Header[:4], p.Header[4:20],
		le.AppendUint32(nil, uint32(guestLen)), le.AppendUint32(nil, uint32(len(p.Data))), p.Data, m.MAC[:])
}

// Entry is one secret in the table that the guest finds.
type Entry struct {
	GUID sev.GUID
	Data []byte
}

// Well-known GUIDs of the secret table (Linux, drivers/virt/coco/efi_secret;
// OVMF, AmdSev/SecretDxe; grub, efisecret).
var (
	guidTable = sev.MustGUID("1e74f542-71dd-4d66-963e-ef4287ff173b")
	// GUIDDiskPassphrase is the entry that grub and guests read a disk key from.
	GUIDDiskPassphrase = guid.DiskPassphrase
)

const entryHeader = 16 + 4 // GUID, u32 length that counts the header too

// ErrTable is wrapped by errors about a secret table's content.
var ErrTable = errors.New("secret table")

// PackTable lays secrets out as the guest reads them, padded with zeros to 16
// bytes. The same GUID twice is an error: a reader would find only one.
func PackTable(entries []Entry) ([]byte, error) {
	if len(entries) == 0 {
		return nil, fmt.Errorf("%w: no entries", ErrTable)
	}
	total := entryHeader
	for i, e := range entries {
		if slices.ContainsFunc(entries[:i], func(o Entry) bool { return o.GUID == e.GUID }) {
			return nil, fmt.Errorf("%w: %v is given twice", ErrTable, e.GUID)
		}
		if e.GUID == guidTable || e.GUID == (sev.GUID{}) {
			return nil, fmt.Errorf("%w: %v is the table's own mark", ErrTable, e.GUID)
		}
		total += entryHeader + len(e.Data)
	}
	if total > MaxSecret {
		return nil, fmt.Errorf("%w: %d bytes, at most %d fit", ErrTable, total, MaxSecret)
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

// ParseTable reads a table, ignoring what follows its end.
func ParseTable(b []byte) ([]Entry, error) {
	if len(b) < entryHeader || sev.GUID(b[:16]) != guidTable {
		return nil, fmt.Errorf("%w: none here", ErrTable)
	}
	total := binary.LittleEndian.Uint32(b[16:])
	if total < entryHeader || uint64(total) > uint64(len(b)) {
		return nil, fmt.Errorf("%w: length %d does not fit %d bytes", ErrTable, total, len(b))
	}
	var entries []Entry
	for b = b[entryHeader:total]; len(b) > 0; {
		if len(b) < entryHeader {
			return nil, fmt.Errorf("%w: %d bytes after the last entry", ErrTable, len(b))
		}
		size := binary.LittleEndian.Uint32(b[16:])
		if size < entryHeader || uint64(size) > uint64(len(b)) {
			return nil, fmt.Errorf("%w: an entry's length %d leaves the table", ErrTable, size)
		}
		entries = append(entries, Entry{GUID: sev.GUID(b[:16]), Data: b[entryHeader:size]})
		b = b[size:]
	}
	return entries, nil
}
