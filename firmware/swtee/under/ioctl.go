package under

// Requests that are answered, or inspected on their way to the kernel (Linux,
// include/uapi/linux/kvm.h, include/uapi/linux/psp-sev.h).
const (
	kvmCreateVM             = 0xAE01
	kvmCheckExtension       = 0xAE03
	kvmMemoryEncryptOp      = 0xC008AEBA
	kvmMemoryEncryptReg     = 0x8010AEBB
	kvmMemoryEncryptUnreg   = 0x8010AEBC
	kvmSetCPUID2            = 0x4008AE90
	kvmGetCPUID2            = 0xC008AE91
	kvmSetRegs              = 0x4090AE82
	kvmSetSregs             = 0x4138AE84
	kvmSetSregs2            = 0x4140AECD
	kvmSetXCRs              = 0x4188AEA7
	kvmSetMSRs              = 0x4008AE89
	kvmSetDebugRegs         = 0x4080AEA2
	kvmCreateGuestMemFD     = 0xC040AED4
	kvmSetMemoryAttributes  = 0x4020AED2
	kvmSetUserMemoryRegion  = 0x4020AE46
	kvmSetUserMemoryRegion2 = 0x40A0AE49
	kvmGetDeviceAttr        = 0x4018AEE2
	kvmHasDeviceAttr        = 0x4018AEE3
	sevIssueCmd             = 0xC0105300
)

// Requests that any QEMU may make, with or without a confidential guest.
var platformRequests = []uint32{sevIssueCmd, kvmMemoryEncryptOp}

// Requests with no effect: memory is not encrypted.
var idleRequests = []uint32{kvmMemoryEncryptReg, kvmMemoryEncryptUnreg, kvmSetMemoryAttributes}

// Requests that a confidential guest needs on a real KVM.
var guestRequests = []uint32{
	kvmCreateVM, kvmSetCPUID2, kvmGetCPUID2, kvmCreateGuestMemFD, kvmGetDeviceAttr, kvmHasDeviceAttr,
}

// Requests that show where guest memory is.
var memoryRequests = []uint32{kvmSetUserMemoryRegion, kvmSetUserMemoryRegion2}

// Requests that set registers, which some launches measure.
var registerRequests = []uint32{kvmSetRegs, kvmSetSregs, kvmSetSregs2, kvmSetXCRs, kvmSetMSRs, kvmSetDebugRegs}

// kvmType is the type byte of all KVM requests, KVMIO.
const kvmType = 0xAE

// VM types (Linux, arch/x86/include/uapi/asm/kvm.h).
const (
	vmDefault = 0
	vmSEV     = 2
	vmSEVES   = 3
	vmSNP     = 4
	vmTDX     = 5
)

// Capabilities that the emulated platform adds to those of KVM.
var capabilities = map[uint64]int64{
	235: 1<<vmDefault | 1<<1 | 1<<vmSEV | 1<<vmSEVES | 1<<vmSNP | 1<<vmTDX, // KVM_CAP_VM_TYPES
	233: 8,                                                                 // KVM_CAP_MEMORY_ATTRIBUTES: PRIVATE
	234: 1,                                                                 // KVM_CAP_GUEST_MEMFD
}

// Commands of KVM_MEMORY_ENCRYPT_OP (enum sev_cmd_id; enum kvm_tdx_cmd_id).
const (
	sevInit              = 0
	sevESInit            = 1
	sevLaunchStart       = 2
	sevLaunchUpdateData  = 3
	sevLaunchUpdateVMSA  = 4
	sevLaunchSecret      = 5
	sevLaunchMeasure     = 6
	sevLaunchFinish      = 7
	sevGuestStatus       = 16
	sevAttestationReport = 20
	sevInit2             = 22
	snpLaunchStart       = 100
	snpLaunchUpdate      = 101
	snpLaunchFinish      = 102

	tdxCapabilities  = 0
	tdxInitVM        = 1
	tdxInitVCPU      = 2
	tdxInitMemRegion = 3
	tdxFinalizeVM    = 4
	tdxGetCPUID      = 5
)

// Commands of SEV_ISSUE_CMD (Linux, include/uapi/linux/psp-sev.h).
const (
	issuePlatformStatus    = 1
	issuePDHCertExport     = 5
	issueGetID2            = 8
	issueSNPPlatformStatus = 9
)

// memFlagGuestMemFD is KVM_MEM_GUEST_MEMFD, a flag of memory slots.
const memFlagGuestMemFD = 4

// Device attributes of KVM itself: group KVM_X86_GRP_SEV.
const (
	groupSystem     = 0
	groupSEV        = 1
	attrVMSAFeature = 0 // KVM_X86_SEV_VMSA_FEATURES
)
