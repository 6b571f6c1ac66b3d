package cpuid

import (
	"bytes"
	"encoding/binary"
	"strings"
)

// Leaves.
const (
	leafVendor           = 0
	leafSignature        = 1
	leafFeatures         = 7
	leafExtended         = 0x80000000
	leafExtendedFeatures = 0x80000001
	leafName             = 0x80000002 // and the next two
	leafMemoryEncryption = 0x8000001f
)

// has reports whether the processor has a leaf.
func has(leaf uint32) bool {
	most, _, _, _ := Ask(leaf&leafExtended, 0)
	return most >= leaf
}

// Vendor is the vendor's word, such as AuthenticAMD.
func Vendor() string {
	_, b, c, d := Ask(leafVendor, 0)
	return string(text(b, d, c))
}

// Name is the processor's name for people; "" if it has none.
func Name() string {
	if !has(leafName + 2) {
		return ""
	}
	var all []byte
	for leaf := uint32(leafName); leaf <= leafName+2; leaf++ {
		all = append(all, text(Ask(leaf, 0))...)
	}
	name, _, _ := bytes.Cut(all, []byte{0})
	return strings.TrimSpace(string(name))
}

func text(registers ...uint32) (b []byte) {
	for _, r := range registers {
		b = binary.LittleEndian.AppendUint32(b, r)
	}
	return b
}

// Signature is the processor's family and model, with their extensions.
func Signature() (family, model int) {
	a, _, _, _ := Ask(leafSignature, 0)
	return signature(a)
}

func signature(a uint32) (family, model int) {
	family, model = int(a>>8&0xf), int(a>>4&0xf)
	if family == 6 || family == 15 {
		model |= int(a >> 12 & 0xf0)
	}
	if family == 15 {
		family += int(a >> 20 & 0xff)
	}
	return family, model
}

// Virtualisation reports whether the processor shows VMX or SVM.
func Virtualisation() bool {
	_, _, c, _ := Ask(leafSignature, 0)
	if c&(1<<5) != 0 {
		return true
	}
	if !has(leafExtendedFeatures) {
		return false
	}
	_, _, c, _ = Ask(leafExtendedFeatures, 0)
	return c&(1<<2) != 0
}

// TME reports whether the processor has total memory encryption.
func TME() bool {
	if !has(leafFeatures) {
		return false
	}
	_, _, c, _ := Ask(leafFeatures, 0)
	return c&(1<<13) != 0
}

// MemoryEncryption is what AMD's leaf on encrypted memory tells.
type MemoryEncryption struct {
	SEV, SEVES, SNP bool
	CBitPos         int // of the encryption bit in addresses
	ReducedBits     int // address bits that encryption takes
	MaxGuests       int // encrypted guests at once
	MinSEVASID      int // address-space IDs below are for SEV-ES and SEV-SNP
}

// Memory returns what the processor tells about encrypted memory. It reports whether
// the processor encrypts any.
func Memory() (m MemoryEncryption, ok bool) {
	if !has(leafMemoryEncryption) {
		return m, false
	}
	return memory(Ask(leafMemoryEncryption, 0))
}

func memory(a, b, c, d uint32) (m MemoryEncryption, ok bool) {
	if a&3 == 0 { // neither SME nor SEV
		return m, false
	}
	return MemoryEncryption{
		SEV: a&(1<<1) != 0, SEVES: a&(1<<3) != 0, SNP: a&(1<<4) != 0,
		CBitPos: int(b & 0x3f), ReducedBits: int(b >> 6 & 0x3f), MaxGuests: int(c), MinSEVASID: int(d),
	}, true
}
