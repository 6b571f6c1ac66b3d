package under

import "github.com/vmlatch/vmlatch/firmware/cpuid"

// kvmCapabilities are the answers to KVM_CHECK_EXTENSION that a fake KVM gives:
// what QEMU 7.2 to 11.1 ask for on x86 (Linux, include/uapi/linux/kvm.h).
var kvmCapabilities = map[uint64]int64{
	0:   1,     // IRQCHIP
	1:   1,     // HLT
	2:   1,     // MMU_SHADOW_CACHE_CONTROL
	3:   1,     // USER_MEMORY
	4:   1,     // SET_TSS_ADDR
	6:   1,     // VAPIC
	7:   1,     // EXT_CPUID
	8:   1,     // CLOCKSOURCE
	9:   8,     // NR_VCPUS
	10:  32764, // NR_MEMSLOTS
	11:  1,     // PIT
	12:  1,     // NOP_IO_DELAY
	14:  1,     // MP_STATE
	15:  2,     // COALESCED_MMIO
	16:  1,     // SYNC_MMU
	21:  1,     // DESTROY_MEMORY_REGION_WORKS
	22:  1,     // USER_NMI
	23:  1,     // SET_GUEST_DEBUG
	24:  1,     // REINJECT_CONTROL
	25:  4096,  // IRQ_ROUTING
	26:  1,     // IRQ_INJECT_STATUS
	30:  1,     // JOIN_MEMORY_REGIONS_WORKS
	31:  32,    // MCE
	32:  1,     // IRQFD
	33:  1,     // PIT2
	34:  1,     // SET_BOOT_CPU_ID
	35:  1,     // PIT_STATE2
	36:  1,     // IOEVENTFD
	37:  1,     // SET_IDENTITY_MAP_ADDR
	39:  14,    // ADJUST_CLOCK
	40:  1,     // INTERNAL_ERROR_DATA
	41:  1,     // VCPU_EVENTS
	47:  1,     // PCI_SEGMENT
	50:  1,     // DEBUGREGS
	51:  1,     // X86_ROBUST_SINGLESTEP
	54:  1,     // ENABLE_CAP
	55:  1,     // XSAVE
	56:  1,     // XCRS
	59:  1,     // ASYNC_PF
	60:  1,     // TSC_CONTROL
	61:  1,     // GET_TSC_KHZ
	62:  1,     // PPC_BOOKE_SREGS
	66:  1024,  // MAX_VCPUS
	70:  1,     // ONE_REG
	72:  1,     // TSC_DEADLINE_TIMER
	76:  1,     // KVMCLOCK_CTRL
	77:  1,     // SIGNAL_MSI
	81:  1,     // READONLY_MEM
	82:  1,     // IRQFD_RESAMPLE
	89:  1,     // DEVICE_CTRL
	95:  1,     // EXT_EMUL_CPUID
	97:  1,     // IOAPIC_POLARITY_IGNORED
	98:  1,     // ENABLE_CAP_VM
	100: 1,     // IOEVENTFD_NO_LENGTH
	105: 1,     // CHECK_EXTENSION_VM
	116: 1,     // DISABLE_QUIRKS
	117: 1,     // X86_SMM
	118: 2,     // MULTI_ADDRESS_SPACE
	121: 1,     // SPLIT_IRQCHIP
	122: 1,     // IOEVENTFD_ANY_LENGTH
	127: 1,     // VCPU_ATTRIBUTES
	128: 4096,  // MAX_VCPU_ID
	129: 11,    // X2APIC_API
	136: 1,     // IMMEDIATE_EXIT
	153: 1,     // GET_MSR_FEATURES
	159: 1,     // MSR_PLATFORM_INFO
	162: 1,     // COALESCED_PIO
	164: 1,     // EXCEPTION_PAYLOAD
	173: 1,     // PMU_EVENT_FILTER
	182: 1,     // HALT_POLL
	183: 1,     // ASYNC_PF_INT
	184: 1,     // LAST_CPU
	185: 1,     // SMALLER_MAXPHYADDR
	187: 1,     // STEAL_TIME
	188: 1,     // X86_USER_SPACE_MSR
	189: 1,     // X86_MSR_FILTER
	190: 1,     // ENFORCE_PV_FEATURE_CPUID
	197: 1,     // VM_COPY_ENC_CONTEXT_FROM
	200: 1,     // SREGS2
	201: 4096,  // EXIT_HYPERCALL
	204: 1,     // EXIT_ON_EMULATION_FAILURE
	206: 1,     // VM_MOVE_ENC_CONTEXT_FROM
	208: 4096,  // XSAVE2
	209: 1,     // SYS_ATTRIBUTES
	215: 1,     // SYSTEM_EVENT_DATA
	218: 1,     // X86_TRIPLE_FAULT_EVENT
	220: 1,     // VM_DISABLE_NX_HUGE_PAGES
	226: 1,     // PMU_EVENT_MASKED_EVENTS
	231: 1,     // USER_MEMORY2
	232: 1,     // MEMORY_FAULT_INFO
	237: 1,     // X86_APIC_BUS_CYCLES_NS
	238: 1,     // X86_GUEST_MODE
	244: 3,     // GUEST_MEMFD_FLAGS
}

// savedMSRs are the MSRs that QEMU may save: architectural ones only.
var savedMSRs = []uint32{
	0x10,                // TSC
	0x174, 0x175, 0x176, // SYSENTER_CS, ESP, EIP
	msrPAT,
	0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, // STAR, LSTAR, CSTAR, FMASK
	0xc0000102, // KERNEL_GS_BASE
	0x3b,       // TSC_ADJUST
	0x1a0,      // MISC_ENABLE
	0xc0000103, // TSC_AUX
	0x48,       // SPEC_CTRL
	0xc0010117, // VM_HSAVE_PA
	0x9e,       // SMBASE
	0x6e0,      // TSC_DEADLINE
	0xda0,      // XSS
	0xc0010015, // HWCR
}

// featureMSRs: ARCH_CAPABILITIES, microcode revision, DE_CFG.
var featureMSRs = []uint32{0x10a, 0x8b, 0xc0011029}

// guestXCR0 is what a guest may turn on in XCR0: x87, SSE, AVX, PKRU.
const guestXCR0 = 7 | 1<<9

const cpuidEntrySize = 40 // struct kvm_cpuid_entry2

// supportedCPUID describes a processor that has every feature, so that QEMU accepts every
// CPU model. The sizes of register state are the host's, because QEMU checks them.
func supportedCPUID() []byte {
	const all = 0xffffffff
	const amdB, amdD, amdC = 0x68747541, 0x69746e65, 0x444d4163 // "AuthenticAMD"
	var out []byte
	add := func(leaf, sub, flags, a, b, c, d uint32) {
		out = append(out, uint32s([]uint32{leaf, sub, flags, a, b, c, d, 0, 0, 0})...)
	}
	const indexed = 1 // KVM_CPUID_FLAG_SIGNIFCANT_INDEX

	signature, _, _, _ := cpuid.Ask(1, 0)
	add(0, 0, 0, 0x1f, amdB, amdC, amdD)
	add(1, 0, 0, signature, 0, all, all)
	add(7, 0, indexed, 2, all, all, all)
	add(7, 1, indexed, all, all, all, all)
	add(7, 2, indexed, all, all, all, all)
	add(0xd, 0, indexed, guestXCR0, 0xa88, 0xa88, 0)
	add(0xd, 1, indexed, 0x1f, 0, 0, 0)
	for _, component := range []uint32{2, 9} { // AVX, PKRU
		a, b, c, d := cpuid.Ask(0xd, component)
		add(0xd, component, indexed, a, b, c, d)
	}
	addressBits, _, _, _ := cpuid.Ask(0x80000008, 0)
	add(0x80000000, 0, 0, 0x80000022, amdB, amdC, amdD)
	add(0x80000001, 0, 0, signature, 0, all, all)
	add(0x80000007, 0, 0, 0, all, 0, all)
	add(0x80000008, 0, 0, addressBits, all, 0, 0)
	add(0x8000000a, 0, 0, 1, 8, 0, all)
	add(leafMemoryEncryption, 0, 0, all, 0, 0, 0)
	add(0x80000021, 0, 0, all, all, all, all)
	add(0x80000022, 0, 0, all, all, all, all)
	add(0x40000000, 0, 0, 0x40000001, 0x4b4d564b, 0x564b4d56, 0x4d) // "KVMKVMKVM"
	add(0x40000001, 0, 0, 0x01007efb, 0, 0, 0)
	return out
}
