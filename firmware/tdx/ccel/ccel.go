// Package ccel reads the event logs of trust domains, and replays them against the run-time
// measurement registers (RTMRs) of a quote.
//
// A log proves nothing by itself: the host's firmware or the guest has written it. It explains
// registers that it replays to; of an event only the digest counts, and its data only where the
// digest is their hash.
//
// Source: Intel TDX Guest-Hypervisor Communication Interface, chapter 4.3 (CCEL).
package ccel

import (
	"crypto/sha512"
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/refusal"
)

// MaxSize is the longest log that is read, in bytes.
const MaxSize = 1 << 20

// Registers is how many RTMRs there are.
const Registers = 4

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

// Parse reads a log as it lies in memory, with or without the padding behind it. The error is a
// refusal.
func Parse(b []byte) (*Log, error) {
	bad := func(format string, args ...any) error {
		return refusal.New(refusal.CCELMalformed).Because(format, args...)
	}
	if len(b) > MaxSize {
		return nil, bad("%d bytes, at most %d", len(b), MaxSize)
	}
	in, err := eventlog.Parse(b)
	if err != nil {
		return nil, bad("%v", err)
	}
	if !in.Has(eventlog.SHA384) {
		return nil, bad("it has no SHA-384 digests")
	}
	l := &Log{}
	for i, e := range in.Events {
		d := e.Digests[eventlog.SHA384]
		switch {
		case e.Index > Registers:
			l.Foreign++
			continue
		case e.Index < 1: // the measurement of the build, MRTD
			continue
		case d == nil:
			return nil, bad("event %d has no SHA-384 digest", i+1)
		}
		l.Events = append(l.Events, Event{int(e.Index) - 1, uint32(e.Type), [48]byte(d), e.Data})
	}
	return l, nil
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
