package sev

import (
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// PageSize is the size in bytes of the pages that SEV-SNP and TDX measure.
const PageSize = 4096

// PageType is what a page of an SNP launch is (SNP ABI, chapter 8.17,
// SNP_LAUNCH_UPDATE, PAGE_TYPE).
type PageType uint8

// Page types.
const (
	PageNormal     PageType = 1 // contents are measured
	PageVMSA       PageType = 2 // register state; contents are measured
	PageZero       PageType = 3 // only that it is there, and zero
	PageUnmeasured PageType = 4 // only that it is there
	PageSecrets    PageType = 5 // filled by the firmware
	PageCPUID      PageType = 6 // checked by the firmware, contents not measured
)

var pageTypeNames = [...]string{
	PageNormal: "normal", PageVMSA: "vmsa", PageZero: "zero",
	PageUnmeasured: "unmeasured", PageSecrets: "secrets", PageCPUID: "cpuid",
}

func (t PageType) String() string {
	if int(t) < len(pageTypeNames) && t != 0 {
		return pageTypeNames[t]
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// Measured reports whether a page's contents enter the digest.
func (t PageType) Measured() bool { return t == PageNormal || t == PageVMSA }

// VMSAAddress is the guest-physical address under which KVM submits every
// register page of an SNP guest (Linux, arch/x86/kvm/svm/sev.c, INITIAL_VMSA_GPA).
const VMSAAddress = 0xFFFFFFFFF000

// SNPDigest is an SNP launch digest: a SHA-384 chain over pages, 48 bytes. The
// zero value is a digest of no pages.
type SNPDigest [48]byte

// pageInfoSize is the length of PAGE_INFO (SNP ABI, chapter 8.17).
const pageInfoSize = 0x70

// Extend adds one page. Contents is the SHA-384 of a measured page's bytes; for
// the other types it is not used (SNP ABI, chapter 8.17, PAGE_INFO: IMI and VMPL
// permissions are zero, as Linux submits them).
func (d *SNPDigest) Extend(t PageType, gpa uint64, contents [48]byte) {
	if !t.Measured() {
		contents = [48]byte{}
	}
	var info [pageInfoSize]byte
	copy(info[0:], d[:])
	copy(info[48:], contents[:])
	binary.LittleEndian.PutUint16(info[96:], pageInfoSize)
	info[98] = byte(t)
	binary.LittleEndian.PutUint64(info[104:], gpa)
	*d = sha512.Sum384(info[:])
}

func (d SNPDigest) String() string { return hex.EncodeToString(d[:]) }
