// Package eventlog reads the logs of what firmware and boot loaders measure, into a TPM's PCRs or
// into the run-time measurement registers of a trust domain, and replays them.
//
// A log proves nothing by itself: whoever could write it wrote it. It explains registers that it
// replays to; of an event only the digests count, and its data only where a digest is their hash.
//
// Source: "TCG" is TCG PC Client Platform Firmware Profile 1.06, chapter 10.
package eventlog

import (
	"bytes"
	"crypto"
	_ "crypto/sha1" // for [Bank.Hash]
	_ "crypto/sha256"
	_ "crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Bounds of a log.
const (
	MaxSize   = 16 << 20 // bytes; Linux's own bound is far below
	maxBanks  = 16
	maxEvents = 100_000
)

// ErrFormat is wrapped by errors about logs that cannot be read.
var ErrFormat = errors.New("event log")

// Bank is a hash algorithm, by its number (TCG Algorithm Registry, TPM_ALG_ID).
type Bank uint16

// Banks of TPMs.
const (
	SHA1   Bank = 0x0004
	SHA256 Bank = 0x000b
	SHA384 Bank = 0x000c
	SHA512 Bank = 0x000d
)

var banks = map[Bank]struct {
	name string
	hash crypto.Hash
}{
	SHA1: {"sha1", crypto.SHA1}, SHA256: {"sha256", crypto.SHA256}, SHA384: {"sha384", crypto.SHA384},
	SHA512: {"sha512", crypto.SHA512},
}

func (b Bank) String() string {
	if x, ok := banks[b]; ok {
		return x.name
	}
	return fmt.Sprintf("algorithm %#x", uint16(b))
}

// Hash is the bank's hash function; 0 if this package has none.
func (b Bank) Hash() crypto.Hash { return banks[b].hash }

// Sum is the digest of data in a bank, nil in one without a hash function.
func (b Bank) Sum(data ...[]byte) []byte {
	h := b.Hash()
	if h == 0 {
		return nil
	}
	w := h.New()
	for _, d := range data {
		w.Write(d)
	}
	return w.Sum(nil)
}

// Extend is a register after a measurement (TCG TPM 2.0 Library, part 1, section 17.2).
func (b Bank) Extend(register, digest []byte) []byte { return b.Sum(register, digest) }

// BankNamed finds a bank by its name.
func BankNamed(name string) (Bank, error) {
	for b, x := range banks {
		if x.name == name {
			return b, nil
		}
	}
	return 0, fmt.Errorf("unknown bank %q: must be sha1, sha256, sha384 or sha512", name)
}

// Event is an entry of a log.
type Event struct {
	Index   uint32 // of the register
	Type    Type
	Digests map[Bank][]byte
	Data    []byte
}

// Hashes reports whether the digest of a bank is the hash of the event's own data, so that these
// are what was measured. Of other events the data prove nothing.
func (e *Event) Hashes(b Bank) bool {
	d := e.Digests[b]
	return d != nil && bytes.Equal(d, b.Sum(e.Data))
}

// Log is an event log.
type Log struct {
	Banks    []Bank // of the digests, in their order
	Events   []Event
	Locality byte // of TPM2_Startup, which is the last byte of PCR 0 then (TCG, section 10.4.5.3)
}

// Has reports whether events have digests of a bank.
func (l *Log) Has(b Bank) bool { return slices.Contains(l.Banks, b) }

const (
	noMoreEvents = 0xffffffff // the first word of the padding
	specID       = "Spec ID Event03\x00"
	startup      = "StartupLocality\x00"
)

// reader takes a log apart. It never goes beyond the end.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n uint32) []byte {
	if uint64(n) > uint64(len(r.b)) {
		r.bad = true
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) u16() uint16 {
	if b := r.take(2); !r.bad {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); !r.bad {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

// Parse reads a log, with or without the padding behind it. Events that extend nothing are left
// out. Logs of TPM 1.2 have SHA-1 digests alone.
func Parse(b []byte) (*Log, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrFormat, len(b), MaxSize)
	}
	r := &reader{b: b}
	l := &Log{Banks: []Bank{SHA1}}
	sizes, err := l.header(r)
	if err != nil {
		return nil, err
	}
	agile := sizes != nil
	if !agile {
		r.b = b
	}
	for n := 1; len(r.b) > 0; n++ {
		e := Event{Index: r.u32()}
		if e.Index == noMoreEvents || r.bad && len(bytes.TrimRight(r.b, "\xff")) == 0 {
			break
		}
		e.Type = Type(r.u32())
		if e.Digests, err = digests(r, sizes); err != nil {
			return nil, fmt.Errorf("%w: event %d: %w", ErrFormat, n, err)
		}
		e.Data = r.take(r.u32())
		switch {
		case r.bad:
			return nil, fmt.Errorf("%w: event %d is cut off", ErrFormat, n)
		case n > maxEvents:
			return nil, fmt.Errorf("%w: more than %d events", ErrFormat, maxEvents)
		case e.Type == NoAction:
			if data, ok := bytes.CutPrefix(e.Data, []byte(startup)); ok && len(data) == 1 && e.Index == 0 {
				l.Locality = data[0]
			}
			continue
		}
		l.Events = append(l.Events, e)
	}
	return l, nil
}

// header reads the first event of a log with several banks, which names the digests' sizes (TCG,
// section 10.4.5.1, TCG_EfiSpecIdEvent). A log without it has none.
func (l *Log) header(r *reader) (sizes map[Bank]uint16, err error) {
	r.take(4) // the register, which differs
	kind := Type(r.u32())
	r.take(20) // SHA-1
	data := &reader{b: r.take(r.u32())}
	if r.bad {
		return nil, fmt.Errorf("%w: its first event is cut off", ErrFormat)
	}
	if kind != NoAction || !bytes.HasPrefix(data.b, []byte(specID)) {
		return nil, nil
	}
	data.take(uint32(len(specID)) + 8) // class, versions, size of a number
	sizes, l.Banks = map[Bank]uint16{}, nil
	count := data.u32()
	for ; count > 0 && !data.bad; count-- {
		b, size := Bank(data.u16()), data.u16()
		if h := b.Hash(); h != 0 && int(size) != h.Size() && !data.bad {
			return nil, fmt.Errorf("%w: it says that %v digests have %d bytes", ErrFormat, b, size)
		}
		if _, twice := sizes[b]; !twice {
			l.Banks = append(l.Banks, b)
		}
		sizes[b] = size
		if len(l.Banks) > maxBanks {
			return nil, fmt.Errorf("%w: it has more than %d banks", ErrFormat, maxBanks)
		}
	}
	if data.bad || len(sizes) == 0 {
		return nil, fmt.Errorf("%w: its header is cut off", ErrFormat)
	}
	return sizes, nil
}

// digests reads those of an event. sizes is nil for logs of SHA-1 alone.
func digests(r *reader, sizes map[Bank]uint16) (map[Bank][]byte, error) {
	if sizes == nil {
		return map[Bank][]byte{SHA1: r.take(20)}, nil
	}
	found := map[Bank][]byte{}
	for count := r.u32(); count > 0 && !r.bad; count-- {
		b := Bank(r.u16())
		size, known := sizes[b]
		if !known && !r.bad {
			return nil, fmt.Errorf("it has a digest of %v, which the log does not name", b)
		}
		found[b] = r.take(uint32(size))
	}
	return found, nil
}

// Registers is how many registers are replayed: those of a TPM for PCs.
const Registers = 24

// Replay works out the registers of a bank that the log leads to, from their state after a reset.
// An event without a digest of the bank is an error.
func (l *Log) Replay(b Bank) (list [Registers][]byte, err error) {
	h := b.Hash()
	if h == 0 || !l.Has(b) {
		return list, fmt.Errorf("%w: it has no digests of %v", ErrFormat, b)
	}
	for i := range list {
		list[i] = make([]byte, h.Size())
		if i >= 17 && i <= 22 { // of a dynamic launch (TCG PC Client Platform TPM Profile, section 4.6)
			for n := range list[i] {
				list[i][n] = 0xff
			}
		}
	}
	list[0][h.Size()-1] = l.Locality
	for i := range l.Events {
		e := &l.Events[i]
		if e.Index >= Registers {
			return list, fmt.Errorf("%w: event %d is of register %d", ErrFormat, i+1, e.Index)
		}
		d := e.Digests[b]
		if d == nil {
			return list, fmt.Errorf("%w: event %d has no digest of %v", ErrFormat, i+1, b)
		}
		list[e.Index] = b.Extend(list[e.Index], d)
	}
	return list, nil
}
