package launch

import (
	"encoding/binary"

	"github.com/vmlatch/vmlatch/firmware/nearest"
)

// VMM is whose virtual machine monitor launches the guest: they differ in the
// registers that a vCPU starts with, and in the order and types of pages.
type VMM uint8

// Virtual machine monitors.
const (
	QEMU VMM = iota
	EC2
	GCE
)

var vmmNames = []string{"qemu", "ec2", "gce"}

// VMMs returns their names.
func VMMs() []string { return vmmNames }

func (v VMM) String() string { return vmmNames[v] }

// ParseVMM reads a name.
func ParseVMM(s string) (VMM, error) {
	for i, n := range vmmNames {
		if n == s {
			return VMM(i), nil
		}
	}
	return 0, nearest.Unknown("VMM", s, vmmNames)
}

// Profile is how the guest's registers were set up.
type Profile uint8

const (
	// INIT2 is KVM_SEV_INIT2, of Linux 6.10: the FPU's reset state is measured.
	INIT2 Profile = iota
	// Legacy is KVM_SEV_ES_INIT, QEMU's legacy-vm-type=on, and SEV-SNP on kernels
	// before 6.10: the FPU's fields are zero.
	Legacy
	// EC2RDX0 is EC2 before April 2026, whose vCPUs start with RDX 0.
	EC2RDX0
)

var profileNames = []string{"init2", "legacy", "ec2-rdx0"}

// Profiles returns their names.
func Profiles() []string { return profileNames }

func (p Profile) String() string { return profileNames[p] }

// ParseProfile reads a name.
func ParseProfile(s string) (Profile, error) {
	for i, n := range profileNames {
		if n == s {
			return Profile(i), nil
		}
	}
	return 0, nearest.Unknown("VMSA profile", s, profileNames)
}

// resetVector is where the boot processor starts: IP FFF0h in a code segment at
// FFFF0000h (APM volume 2, chapter 14.1.3).
const resetVector = 0xfffffff0

// registers are what a register page is made of.
type registers struct {
	eip       uint32
	signature Signature
	features  uint64
	vmm       VMM
	profile   Profile
	svsm      bool
}

// Offsets in a VMSA (APM, table B-4), and the values of a vCPU at reset (APM
// volume 2, table 14-1; Linux, sev_es_sync_vmsa).
const (
	offES, offCS, offSS, offDS, offFS, offGS = 0x00, 0x10, 0x20, 0x30, 0x40, 0x50
	offGDTR, offLDTR, offIDTR, offTR         = 0x60, 0x70, 0x80, 0x90
	offEFER, offCR4, offCR0, offDR7, offDR6  = 0x0d0, 0x148, 0x158, 0x160, 0x168
	offRFLAGS, offRIP, offPAT, offRDX        = 0x170, 0x178, 0x268, 0x310
	offFeatures, offXCR0, offMXCSR, offFCW   = 0x3b0, 0x3e8, 0x408, 0x410

	attrData, attrCode = 0x93, 0x9b // present, accessed, writable or readable
	attrLDT, attrTSS   = 0x82, 0x8b
	eferSVME           = 1 << 12 // KVM sets it for every SEV-ES guest
	cr4MCE             = 1 << 6
	resetMXCSR         = 0x1f80
	resetFCW           = 0x37f
	resetPAT           = 0x0007040600070406
	ec2RDX             = 0x600
	gcePAT             = 0x00070106
)

// page is the register page of one vCPU.
func (r registers) page() *[4096]byte {
	p := new([4096]byte)
	le := binary.LittleEndian
	segment := func(off int, selector, attributes uint16, limit, base uint32) {
		le.PutUint16(p[off:], selector)
		le.PutUint16(p[off+2:], attributes)
		le.PutUint32(p[off+4:], limit)
		le.PutUint64(p[off+8:], uint64(base))
	}
	const limit = 0xffff
	stack, task, code := uint16(attrData), uint16(attrTSS), uint16(attrCode)
	cr0, rdx, pat := uint64(0x10), uint64(r.signature), uint64(resetPAT)
	mxcsr, fcw := uint32(resetMXCSR), uint16(resetFCW)
	switch r.vmm {
	case EC2:
		stack, task, rdx, mxcsr, fcw = 0x92, 0x83, ec2RDX, 0, 0
		if r.eip == resetVector {
			code = 0x9a
		}
	case GCE:
		rdx, pat, mxcsr, fcw = ec2RDX, gcePAT, 0, 0
	}
	switch r.profile {
	case Legacy:
		mxcsr, fcw = 0, 0
	case EC2RDX0:
		rdx = 0
	}
	for _, off := range []int{offES, offDS, offFS, offGS} {
		segment(off, 0, attrData, limit, 0)
	}
	segment(offCS, 0xf000, code, limit, r.eip&0xffff0000)
	segment(offSS, 0, stack, limit, 0)
	rip := uint64(r.eip & 0xffff)
	if r.svsm { // starts in protected mode, with flat segments
		const flatData, flatCode, all = 0xc93, 0xc9b, 0xffffffff
		for _, off := range []int{offES, offSS, offDS, offFS} {
			segment(off, 0x10, flatData, all, 0)
		}
		segment(offCS, 8, flatCode, all, 0)
		// The register page of an SVSM has no FPU control word in the digests that
		// its own tests pin.
		rip, cr0, fcw = uint64(r.eip), 0x11, 0
	}
	segment(offGDTR, 0, 0, limit, 0)
	segment(offLDTR, 0, attrLDT, limit, 0)
	segment(offIDTR, 0, 0, limit, 0)
	segment(offTR, 0, task, limit, 0)
	for _, f := range []struct {
		off   int
		value uint64
	}{
		{offEFER, eferSVME},
		{offCR4, cr4MCE},
		{offCR0, cr0},
		{offDR7, 0x400},
		{offDR6, 0xffff0ff0},
		{offRFLAGS, 2},
		{offRIP, rip},
		{offPAT, pat},
		{offRDX, rdx},
		{offFeatures, r.features},
		{offXCR0, 1},
	} {
		le.PutUint64(p[f.off:], f.value)
	}
	le.PutUint32(p[offMXCSR:], mxcsr)
	le.PutUint16(p[offFCW:], fcw)
	return p
}
