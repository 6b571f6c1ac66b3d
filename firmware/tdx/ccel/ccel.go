// Package ccel reads the event logs of trust domains, and replays them against the run-time
// measurement registers (RTMRs) of a quote.
//
// A log proves nothing by itself: the host's firmware or the guest has written it. It explains
// registers that it replays to; of an event only the digest counts, and its data only where the
// digest is their hash.
//
// Sources: "TCG" is TCG PC Client Platform Firmware Profile, chapter 10; "GHCI" is Intel TDX
// Guest-Hypervisor Communication Interface, chapter 4.3 (CCEL).
package ccel

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/refusal"
)

// MaxSize is the longest log that is read, in bytes.
const MaxSize = 1 << 20

// Registers is how many RTMRs there are.
const Registers = 4

// Types of events that have a meaning here (TCG, table 27).
const (
	evNoAction  = 3
	noMoreEvent = 0xffffffff // the first word of the padding
	algSHA384   = 0x0c
	specID      = "Spec ID Event03\x00"
)

// Event is an entry of a log.
type Event struct {
	Register int // 0 to 3
	Type     uint32
	Digest   [48]byte // SHA-384
	Data     []byte
}

// HashesData reports whether the digest is the hash of the event's own data, so that these are
// what was measured. Of other events the data prove nothing.
func (e *Event) HashesData() bool { return sha512.Sum384(e.Data) == e.Digest }

// Log is an event log.
type Log struct {
	Events  []Event
	Foreign int // events of registers that no trust domain has: it may be the log of a TPM
}

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

// Parse reads a log as it lies in memory, with or without the padding behind it. The error is a
// refusal.
func Parse(b []byte) (*Log, error) {
	bad := func(format string, args ...any) error {
		return refusal.New(refusal.CCELMalformed).Because(format, args...)
	}
	if len(b) > MaxSize {
		return nil, bad("%d bytes, at most %d", len(b), MaxSize)
	}
	r := &reader{b: b}
	sizes, err := header(r)
	if err != nil {
		return nil, bad("%v", err)
	}
	l := &Log{}
	for len(r.b) > 0 {
		index := r.u32()
		if index == noMoreEvent || r.bad && len(bytes.TrimRight(r.b, "\xff")) == 0 {
			break
		}
		e := Event{Register: int(index) - 1, Type: r.u32()}
		has := false
		for count := r.u32(); count > 0 && !r.bad; count-- {
			alg := r.u16()
			size, known := sizes[alg]
			if !known && !r.bad {
				return nil, bad(
					"event %d has a digest of algorithm %#x, which the log does not name",
					len(l.Events),
					alg,
				)
			}
			if d := r.take(uint32(size)); alg == algSHA384 && !r.bad {
				copy(e.Digest[:], d)
				has = true
			}
		}
		e.Data = r.take(r.u32())
		switch {
		case r.bad:
			return nil, bad("event %d is cut off", len(l.Events))
		case e.Type == evNoAction:
			continue
		case index < 1 || index > Registers:
			if index > Registers {
				l.Foreign++
			}
			continue
		case !has:
			return nil, bad("event %d has no SHA-384 digest", len(l.Events))
		}
		l.Events = append(l.Events, e)
	}
	return l, nil
}

// header reads the first event, which names the digests' sizes (TCG, chapter 10.4.5.1,
// TCG_EfiSpecIDEvent).
func header(r *reader) (sizes map[uint16]uint16, err error) {
	r.take(4) // index
	kind := r.u32()
	r.take(20) // SHA-1
	data := &reader{b: r.take(r.u32())}
	if r.bad || kind != evNoAction || !bytes.HasPrefix(data.b, []byte(specID)) {
		return nil, fmt.Errorf("it does not begin with %q", specID[:len(specID)-1])
	}
	data.take(uint32(len(specID)) + 8) // class, versions, size of a number
	sizes = map[uint16]uint16{}
	for count := data.u32(); count > 0 && !data.bad; count-- {
		alg := data.u16()
		sizes[alg] = data.u16()
	}
	if data.bad || sizes[algSHA384] != sha512.Size384 {
		return nil, fmt.Errorf("it has no SHA-384 digests")
	}
	return sizes, nil
}

// Replay works out the registers that a log leads to.
func (l *Log) Replay() (rtmr [Registers][48]byte) {
	for i := range l.Events {
		e := &l.Events[i]
		rtmr[e.Register] = Extend(rtmr[e.Register], e.Digest)
	}
	return rtmr
}

// Extend is a register after a measurement (TDX module, TDG.MR.RTMR.EXTEND).
func Extend(rtmr, digest [48]byte) [48]byte {
	return sha512.Sum384(append(rtmr[:], digest[:]...))
}

// Match is a refusal unless a log leads to the registers of a quote. The last may have been
// extended further by the guest, and is not compared if it has no event.
func (l *Log) Match(rtmr [Registers][48]byte) error {
	got := l.Replay()
	for i := range got {
		if i == Registers-1 && got[i] == [48]byte{} {
			continue
		}
		if got[i] != rtmr[i] {
			return refusal.New(refusal.CCELMismatch).Differs(fmt.Sprintf("RTMR%d", i), got[i][:], rtmr[i][:])
		}
	}
	return nil
}
