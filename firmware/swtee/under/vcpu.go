package under

import (
	"maps"
	"slices"

	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/firmware/swtee/internal/trap"
)

// vcpu holds a virtual CPU's registers as QEMU last passed them to KVM.
type vcpu struct {
	regs  []byte // struct kvm_regs, nil before KVM_SET_REGS
	sregs []byte // struct kvm_sregs
	xcr0  uint64
	pat   uint64
	dr6   uint64
	dr7   uint64
}

// Sizes of the structures that carry registers.
const (
	sizeRegs      = 144
	sizeSregs     = 312 // struct kvm_sregs2 has the same fields up to here
	sizeXCRs      = 24  // up to the first register
	sizeDebugRegs = 48
)

const msrPAT = 0x277 // IA32_PAT

func (s *supervisor) vcpu(n int) *vcpu {
	v := s.vcpus[n]
	if v == nil { // as KVM resets it
		v = &vcpu{xcr0: 1, pat: 0x0007040600070406, dr6: 0xffff0ff0, dr7: 0x400}
		s.vcpus[n] = v
	}
	return v
}

// recordRegisters stores what a call sets.
func (s *supervisor) recordRegisters(c *trap.Call, n int, request uint32, arg uint64) {
	v := s.vcpu(n)
	read := func(size int) []byte {
		b, err := c.Read(arg, size)
		if err != nil {
			s.log.Warn("registers of a vCPU", "vcpu", n, "err", err)
			return nil
		}
		return b
	}
	switch request {
	case kvmSetRegs:
		v.regs = read(sizeRegs)
	case kvmSetSregs, kvmSetSregs2:
		v.sregs = read(sizeSregs)
	case kvmSetDebugRegs: // db[4], dr6, dr7, …
		if b := read(sizeDebugRegs); b != nil {
			v.dr6, v.dr7 = le.Uint64(b[32:]), le.Uint64(b[40:])
		}
	case kvmSetXCRs: // u32 count, flags; then u32 number, reserved, u64 value
		if b := read(sizeXCRs); b != nil && le.Uint32(b) > 0 && le.Uint32(b[8:]) == 0 {
			v.xcr0 = le.Uint64(b[16:])
		}
	case kvmSetMSRs:
		b, err := readList(c, arg, 16, 8)
		if err != nil {
			return
		}
		for i := 0; i+16 <= len(b); i += 16 {
			if le.Uint32(b[i:]) == msrPAT {
				v.pat = le.Uint64(b[i+8:])
			}
		}
	}
}

// registerPages are the save areas of all vCPUs, in their order.
func (s *supervisor) registerPages() []swtee.RegisterPage {
	var pages []swtee.RegisterPage
	for _, n := range slices.Sorted(maps.Keys(s.vcpus)) {
		if v := s.vcpus[n]; v.regs != nil && v.sregs != nil {
			pages = append(pages, swtee.RegisterPage{VCPU: n, VMSA: v.saveArea(s.features, s.vmType != vmDefault)})
		}
	}
	return pages
}

// saveArea is the VMSA that KVM makes from a vCPU's registers (Linux,
// arch/x86/kvm/svm/sev.c, sev_es_sync_vmsa; offsets: AMD, APM volume 2, table
// B-4). The FPU's state is in it only for VMs that were initialised by INIT2.
func (v *vcpu) saveArea(features uint64, fpu bool) []byte {
	p := make([]byte, 4096)
	put := func(off int, x uint64) { le.PutUint64(p[off:], x) }

	// struct kvm_sregs: cs ds es fs gs ss tr ldt
	for i, off := range []int{0x10, 0x30, 0x00, 0x40, 0x50, 0x20, 0x90, 0x70} {
		segment(p[off:], v.sregs[i*24:])
	}
	for off, src := range map[int]int{0x60: 192, 0x80: 208} { // gdt, idt
		copy(p[off+8:], v.sregs[src:src+8])
		copy(p[off+4:], v.sregs[src+8:src+10])
	}
	sreg := func(off int) uint64 { return le.Uint64(v.sregs[off:]) }
	cr0, cr2, cr3, cr4, efer := sreg(224), sreg(232), sreg(240), sreg(248), sreg(264)
	const (
		eferSVME         = 1 << 12
		cr4MCE           = 1 << 6
		cr0CacheDisabled = 1<<30 | 1<<29 // CD and NW, which KVM keeps off
	)
	put(0x0D0, efer|eferSVME)
	put(0x148, cr4|cr4MCE)
	put(0x150, cr3)
	put(0x158, cr0&^cr0CacheDisabled)
	put(0x160, v.dr7)
	put(0x168, v.dr6)
	put(0x240, cr2)
	put(0x268, v.pat)

	// struct kvm_regs: rax rbx rcx rdx rsi rdi rsp rbp r8-r15 rip rflags
	reg := func(i int) uint64 { return le.Uint64(v.regs[i*8:]) }
	for off, i := range map[int]int{
		0x170: 17, 0x178: 16, 0x1D8: 6, 0x1F8: 0, 0x308: 2, 0x310: 3, 0x318: 1, 0x328: 7, 0x330: 4, 0x338: 5,
	} {
		put(off, reg(i))
	}
	for i := range 8 {
		put(0x340+8*i, reg(8+i))
	}
	put(0x3B0, features)
	put(0x3E8, v.xcr0)
	if fpu {
		le.PutUint32(p[0x408:], 0x1f80) // MXCSR
		le.PutUint16(p[0x410:], 0x37f)  // FCW
	}
	return p
}

// segment turns struct kvm_segment into a VMSA's: selector, attributes, limit, base.
func segment(dst, src []byte) {
	const (
		base, limit, selector                         = 0, 8, 12
		typ, present, dpl, db, s, l, g, avl, unusable = 14, 15, 16, 17, 18, 19, 20, 21, 22
	)
	bit := func(off int, shift uint) uint16 { return uint16(src[off]&1) << shift }
	attr := uint16(src[typ]&0xf) | bit(s, 4) | uint16(src[dpl]&3)<<5 |
		bit(avl, 8) | bit(l, 9) | bit(db, 10) | bit(g, 11)
	if src[unusable] == 0 {
		attr |= bit(present, 7)
	}
	copy(dst[0:2], src[selector:])
	le.PutUint16(dst[2:], attr)
	copy(dst[4:8], src[limit:])
	copy(dst[8:16], src[base:])
}
