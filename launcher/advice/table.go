package advice

import (
	"slices"
	"sync"

	"github.com/vmlatch/vmlatch/launcher/fault"
)

// row is a cause of some words.
type row struct {
	pattern string // regular expression; statuses of the firmware are decimal
	cause   string
	fix     string
	kind    fault.Kind
	late    bool
}

// rows are all of them. The first match counts.
var rows = sync.OnceValue(func() []row { return slices.Concat(reported[:], table[:]) })

// table maps the words of QEMU (target/i386/sev.c, kvm/tdx.c) and of the
// platform's firmware (SEV API, chapter 5.2) to causes.
var table = [...]row{
	{
		pattern: `(?i)too many open files`,
		cause:   "QEMU may not open as many files as it needs",
		fix:     fault.FixOpenFiles,
		kind:    fault.Host,
	},
	{
		pattern: `TPM result for CMD_INIT: 0x101`,
		cause:   "the TPM's state cannot be read: its key is not the one that it was made with, or it is damaged",
		fix:     "name the right key in [tpm], or put a backup back: vmlatch tpm import",
		kind:    fault.Host,
	},
	{
		pattern: `tpm-emulator: Could not stop TPM`,
		cause:   "its TPM had ended before, and the guest was reset: QEMU cannot go on without it",
		fix:     "start it again: the TPM's state is kept; the system's log may say what ended swtpm",
		kind:    fault.Host,
	},
	{
		pattern: `TPM result for CMD_INIT: 0x9`,
		cause:   "another process uses the TPM's state",
		fix:     "end it: vmlatch ps shows VMs; or wait a moment",
		kind:    fault.Host,
	},
	{
		pattern: `SNP_LAUNCH_FINISH.*fw_error=11 `,
		cause:   "the launch digest differs from the one in the ID block that its owner signed",
		fix: "compare firmware, kernel, command line, cpus and cpu with what the owner measured: latchkey" +
			" explain finds the difference",
		kind: fault.Refused,
	},
	{
		pattern: `SNP_LAUNCH_FINISH.*fw_error=(?:7|10) `,
		cause:   "the ID block is for another policy, or its signature does not hold",
		fix:     "make the ID block again for this policy: latchkey idblock make",
		kind:    fault.Refused,
	},
	{
		pattern: `SNP_LAUNCH_START ret=-22 fw_error=0 `,
		cause: "the host's kernel does not take the policy: it has bits that this kernel or this platform" +
			" does not know",
		fix:  "take the newer words out of policy, or update the host's kernel and the platform's firmware",
		kind: fault.Host,
	},
	{
		pattern: `SEV-SNP: CPUID validation failed|SEV-SNP: failed update CPUID page`,
		cause:   "the platform's firmware does not let the guest have a CPU with these features",
		fix:     "name a CPU model that the processor has, without added features",
		kind:    fault.Host,
	},
	{
		pattern: `SNP_LAUNCH_START.*fw_error=7 `,
		cause: "the platform does not allow the policy: it asks for newer firmware, or for SMT, sockets or" +
			" ciphertext in another way than this host has them",
		fix:  `change policy if the guest's owner agrees: "smt", and a lower abi=; or the machine's setup`,
		kind: fault.Refused,
	},
	{
		pattern: `[^_]LAUNCH_START.*fw_error=11 `,
		cause:   "the platform cannot unwrap the session: it was made for another platform, or for another policy",
		fix:     "make a new session with latchkey for this host's platform file and exactly the policy of the spec",
		kind:    fault.Refused,
	},
	{
		pattern: `[^_]LAUNCH_START.*fw_error=7 `,
		cause:   "the policy asks for newer SEV firmware than this platform has",
		fix:     "update the platform's firmware, or lower api= in the policy if its owner agrees",
		kind:    fault.Refused,
	},
	{
		pattern: `[^_]LAUNCH_START.*fw_error=(?:6|10) `,
		cause:   "the owner's certificate is malformed",
		fix:     "copy the .godh file again, unchanged",
		kind:    fault.Refused,
	},
	{
		pattern: `inject secret.*fw_error=11 `,
		cause:   "the packet was not made with this session's keys for this launch, or was changed on its way",
		fix:     "take the measurement of this launch again and have its owner make a new packet",
		kind:    fault.Refused,
	},
	{
		pattern: `fw_err(?:or)?='?1[ :]`,
		cause:   "the secure processor is not initialised, or was reset",
		fix: "reload the kernel modules kvm_amd and ccp, or restart the host; the kernel's log says why" +
			" (dmesg, lines with ccp)",
		kind: fault.Host,
	},
	{
		pattern: `fw_err(?:or)?='?16[ :]`,
		cause:   "the platform has lost this guest: the secure processor was reset while it was launched",
		fix:     "start the VM again",
		kind:    fault.Host,
	},
	{
		pattern: `failed to register region`,
		cause:   "QEMU may not pin the guest's memory, or there is too little of it",
		fix:     fault.FixMemlock + "; or lower memory in the spec",
		kind:    fault.Host,
	},
	{
		pattern: `kvm_init: failed to initialize ret=-12 `,
		cause:   "the host's kernel has too little memory to set the guest up",
		fix:     "stop another VM, or free memory on the host",
		kind:    fault.Host,
	},
	{
		pattern: `fw_err(?:or)?='?(?:23|14|15)[ :]|kvm_init: failed to initialize ret=-16 |` +
			`KVM_TDX_INIT_VM failed.*(?:resource busy|No space left)`,
		cause: "the platform has no free encryption slot, or needs to flush before it can give one out again",
		fix:   "stop another confidential VM, or try again in a moment",
		kind:  fault.Host,
		late:  true, // slots come back late: the kernel flushes caches first (Linux, arch/x86/kvm/svm/sev.c)
	},
	{
		pattern: `fw_err(?:or)?='?21[ :]`,
		cause:   "this platform's firmware does not have a feature that the launch asks for",
		fix:     "update the platform's firmware, or ask for less in policy",
		kind:    fault.Host,
	},
	{
		pattern: `fw_err(?:or)?='?22[ :]`,
		cause: "the platform's firmware does not take a parameter of the launch: a policy bit, or memory" +
			" that the firmware image asks for",
		fix: "take the newer words out of policy, try another build of the firmware image, or update the" +
			" platform's firmware",
		kind: fault.Host,
	},
	{
		pattern: `fw_err(?:or)?='?(?:3|5)[ :]`,
		cause:   "the platform is configured in another way, or belongs to another owner",
		fix: "reset its configuration (sevctl reset) and export its certificates again; sessions made" +
			" before then are void",
		kind: fault.Host,
	},
	{
		pattern: `fw_err(?:or)?='?(?:12|13)[ :]`,
		cause:   "kernel and firmware disagree about an encryption slot",
		fix:     "stop all confidential VMs and reload kvm_amd, or restart the host",
		kind:    fault.Host,
	},
	{
		pattern: `fw_err(?:or)?='?(?:19|20)[ :]`,
		cause:   "the secure processor reports a hardware error",
		fix:     "restart the host; if it comes back, have the machine looked at",
		kind:    fault.Host,
	},
	{
		pattern: `fw_err(?:or)?='?24[ :]`,
		cause:   "the secure processor's own data failed its integrity check",
		fix:     "restart the host; if it comes back, install the platform's firmware again",
		kind:    fault.Host,
	},
	{
		pattern: `fw_err(?:or)?='?17[ :]`,
		cause:   "the platform's firmware does not know a command of this kernel or QEMU",
		fix:     "update the platform's firmware",
		kind:    fault.Host,
	},
	{
		pattern: `fw_err(?:or)?='?(?:2|8|18)[ :]`,
		cause:   "the platform has this guest in a state other than the one QEMU expects",
		fix:     "start the VM again; if it fails in the same way, update QEMU and the platform's firmware",
		kind:    fault.Host,
	},
	{
		pattern: `Not in correct state\. \(LSECRET\)`,
		cause:   "the guest has already been released; secrets go in while it is paused",
		fix:     "start the VM again with a new session",
		kind:    fault.Refused,
	},
	{
		pattern: `secret of \d+ bytes does not fit|Failed to calculate guest address|Failed to decode sequence header`,
		cause:   "the secret is larger than the area that the firmware reserves for it",
		fix:     "send a smaller secret, such as a key instead of what it opens",
		kind:    fault.Refused,
	},
	{
		pattern: `hashes table area is invalid|has no hashes table GUID|no secret area found|cannot map hashes table`,
		cause:   "this firmware has no area for kernel hashes or secrets",
		fix:     fault.FixAmdSev,
		kind:    fault.Host,
	},
	{
		pattern: `could not load PC BIOS|Could not open ROM`,
		cause: "QEMU cannot map the firmware image: its size is not a multiple of 64 KiB, or it is one" +
			" half of a pair",
		fix:  "use one whole image",
		kind: fault.Host,
	},
	{
		pattern: `Failed to locate SEV metadata|Cannot find TDX_METADATA_OFFSET|SEV information block`,
		cause:   "this firmware has no metadata for the technology",
		fix:     fault.FixOVMF,
		kind:    fault.Host,
	},
	{
		pattern: `launch measurement is not available|did not measure the guest`,
		cause: "the platform did not complete the launch measurement; the VM's log says which command" +
			" failed (vmlatch logs --kind qemu)",
		fix:  "start the VM again; a platform that keeps failing needs newer firmware",
		kind: fault.Refused,
	},
	{
		pattern: `does not support requested \S+ VM type|SEV-ES support unavailable|` +
			`does not support the requested SEV configuration`,
		cause: "the host's kernel cannot set up such a guest",
		fix: `update the host's kernel (Linux 6.10 for INIT2, 6.11 for SEV-SNP), or write vmsa =` +
			` "legacy" for SEV and SEV-ES`,
		kind: fault.Host,
	},
	{
		pattern: `KVM_TDX_CAPABILITIES failed|TDX is not supported|Invalid (?:attributes|XFAM) 0x`,
		cause:   "the host's TDX module or kernel does not offer what the launch asks for",
		fix:     `"vmlatch check" shows the host's side; leave attributes other than sept-ve-disable out of policy`,
		kind:    fault.Host,
	},
	{
		pattern: `RDRAND/RDSEED|KVM_TDX_INIT_VM failed.*temporarily unavailable`,
		cause:   "the processor has no random numbers left: another program takes them all",
		fix:     "try again; find the program that uses RDSEED without pause",
		kind:    fault.Host,
	},
	{
		pattern: `TDX ioctl \S+ failed|KVM_TDX_(?:INIT_VCPU|FINALIZE_VM) failed|KVM_TDX_INIT_VM failed: Invalid`,
		cause:   "the TDX module refused a step of the launch",
		fix:     "start the VM again; the kernel's log has the module's own error (dmesg, lines with tdx)",
		kind:    fault.Host,
	},
	{
		pattern: `TDX guest reports fatal error`,
		cause:   "the guest's firmware or kernel gave up; its words are the guest's own and prove nothing",
		fix:     "look at the console: vmlatch logs",
	},
	{
		pattern: `(?:LAUNCH_UPDATE|LAUNCH_START|LAUNCH_FINISH|LAUNCH_MEASURE|inject secret)[^;]* fw_error=[1-9]`,
		cause:   "the secure processor refused a step of the launch",
		fix:     "start the VM again; if it fails in the same way, update the platform's firmware",
		kind:    fault.Refused,
	},
	{
		pattern: `Failed to open /dev/sev|kvm_init: failed to initialize ret=-(?:2|13|19) `,
		cause:   "QEMU cannot use the secure processor",
		fix:     "load kvm_amd with sev=1 and give this user access to /dev/sev, or try with --emulate",
		kind:    fault.Host,
	},
	{
		pattern: `(?i)Failed to get "write" lock|Failed to get shared "write" lock`,
		cause:   "another process uses the disk image",
		fix:     fault.FixImageUsed,
	},
	{
		pattern: `(?i)cannot set up guest memory|Cannot allocate memory`,
		cause:   "the host has not enough free memory for this VM",
		fix: "lower memory in the spec, stop another VM, or raise the limit: MemoryMax= of the unit," +
			" ulimit -v, vm.overcommit_memory",
		kind: fault.Host,
	},
	{
		pattern: `(?i)Could not set up host forwarding rule`,
		cause:   "the host's port is taken, or this user may not have it (below 1024)",
		fix:     "choose another port in forward",
	},
	{
		pattern: `(?i)unsupported machine type|Invalid CPU|unable to find CPU model|Named cpu model is not supported`,
		cause:   "this QEMU does not know the machine type or CPU model",
		fix:     "run the QEMU with -machine help or -cpu help, and correct the spec",
		kind:    fault.Host,
	},
	{
		pattern: `Invalid parameter '|is not a valid|Property .* not found|Parameter .* is unexpected|` +
			`invalid object type|Parameter 'qom-type' does not accept`,
		cause: "this QEMU has no device, object or property of a name in the spec, or is too old for it",
		fix: "correct [[device]] and [[object]], which take QEMU's own names (-device help, -object" +
			" help), or name a newer QEMU with qemu =",
		kind: fault.Host,
	},
	{
		pattern: `No space left on device`,
		cause:   "QEMU finds no room for its logs",
		fix:     "make room in the file system of the path, or name another state-dir",
		kind:    fault.Host,
	},
}
