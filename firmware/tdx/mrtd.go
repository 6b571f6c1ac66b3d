package tdx

import (
	"crypto/sha512"
	"encoding/binary"
	"hash"
)

const (
	// PageSize is the size in bytes of a page that is added to a trust domain.
	PageSize = 4096
	// ChunkSize is the size in bytes of what one TDH.MR.EXTEND measures.
	ChunkSize = 256
	// recordSize is the length of what enters the hash for each call (TDX base,
	// chapter "Measurement and attestation", TDMR_EXTEND and TDH.MEM.PAGE.ADD).
	recordSize = 128
)

// MRTD is a build-time measurement under way: SHA-384 over the calls that add
// and measure pages.
type MRTD struct{ h hash.Hash }

// NewMRTD begins a measurement.
func NewMRTD() *MRTD { return &MRTD{sha512.New384()} }

func (m *MRTD) record(name string, gpa uint64) {
	var r [recordSize]byte
	copy(r[:], name)
	binary.LittleEndian.PutUint64(r[16:], gpa)
	m.h.Write(r[:])
}

// AddPage is TDH.MEM.PAGE.ADD: it measures where a page is, not what is in it.
func (m *MRTD) AddPage(gpa uint64) { m.record("MEM.PAGE.ADD", gpa) }

// ExtendPage is TDH.MR.EXTEND for the 16 chunks of a page of PageSize bytes.
func (m *MRTD) ExtendPage(gpa uint64, page []byte) {
	for off := 0; off < PageSize; off += ChunkSize {
		m.record("MR.EXTEND", gpa+uint64(off))
		m.h.Write(page[off : off+ChunkSize])
	}
}

// Sum returns the measurement so far.
func (m *MRTD) Sum() [48]byte { return [48]byte(m.h.Sum(nil)) }
