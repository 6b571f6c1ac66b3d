package advice

import "github.com/vmlatch/vmlatch/launcher/fault"

// reported are words that users met elsewhere and could not read. They stand before the
// rows of statuses, and the rows that catch what is left.
var reported = [...]row{
	{
		pattern: `LAUNCH_START ret=-25 |kvm_init: failed to initialize ret=-25 `,
		cause: "kernel and QEMU are out of step: this kernel's kvm_amd does not know the command, or SEV was not" +
			" switched on when it was loaded",
		fix: "use a kernel and a QEMU that belong together (SEV-SNP: Linux 6.11, QEMU 9.1), and load kvm_amd with" +
			" sev=1 sev_es=1 sev_snp=1",
		kind: fault.Host,
	},
	{
		pattern: `[^_]LAUNCH_START ret=\S+ fw_error=4 |SEV: Failed to (?:read '|decode data)`,
		cause: "the session or the owner's certificate has another length than the platform expects: one is cut," +
			" or is not base64",
		fix:  fault.FixSession,
		kind: fault.Spec,
	},
	{
		pattern: `vm-type \S+ not supported by KVM`,
		cause: "KVM does not offer such guests: the kernel is too old or was built without them, its module" +
			" was loaded" +
			" without the parameter, or the platform's firmware (the TDX module) did not start",
		fix: `"vmlatch host" says what is missing; the kernel's log says what did not start (dmesg, lines with` +
			` tdx, SEV` +
			" or kvm)",
		kind: fault.Host,
	},
	{
		pattern: `(?:Could not access KVM kernel module|failed to initialize kvm): Permission denied`,
		cause:   "this user may not open /dev/kvm",
		fix:     "join the group kvm (usermod -aG kvm USER), and log in again",
		kind:    fault.Host,
	},
	{
		pattern: `ioctl\(KVM_CREATE_VM\) failed: 22 `,
		cause:   "KVM does not make VMs of this kind: its module lacks the technology, or is older than this QEMU",
		fix: `"vmlatch host" says what is missing; load kvm_amd or kvm_intel with its parameter,` +
			" or update the kernel",
		kind: fault.Host,
	},
	{
		pattern: `Could not access KVM kernel module(?:[^:]|: [^P]|$)|` +
			`ioctl\(KVM_CREATE_VM\) failed: (?:38|95) |failed to` +
			` initialize kvm: No such (?:device|file)`,
		cause: "there is no KVM: the processor's virtualisation is off in the machine's setup, or kvm_amd or" +
			" kvm_intel is" +
			" not loaded",
		fix:  "switch virtualisation on in the machine's setup, and load the module; in a VM the host must pass it on",
		kind: fault.Host,
	},
	{
		pattern: `KVM_CREATE_VM\) failed: 16 |failed to initialize kvm: Device or resource busy`,
		cause:   "another hypervisor has the processor's virtualisation, such as VirtualBox or VMware next to KVM",
		fix:     "stop the other hypervisor's VMs, and unload its modules",
		kind:    fault.Host,
	},
	{
		pattern: `KVM_TDX_INIT_MEM_REGION failed`,
		cause: "the TDX module did not take the firmware's memory: firmware and module do not fit, or a page is" +
			" damaged",
		fix: "try another build of the firmware, and update the TDX module; the kernel's log has the module's" +
			" own error" +
			" (dmesg, lines with tdx)",
		kind: fault.Host,
	},
	{
		pattern: `TDVF|Failed to accept memory|TD_HOB`,
		cause: "QEMU does not take the firmware's TDX metadata: a section of a type, a size or a place in memory" +
			" that it" +
			" does not support, as builds for other hypervisors have",
		fix:  `use another build of OVMF with TDX; "latchkey firmware" shows the sections, and what is wrong with them`,
		kind: fault.Spec,
	},
	{
		pattern: `Failed to get HVA for GPA|snp_populate_metadata_pages|metadata section`,
		cause: "QEMU does not take the firmware's SEV metadata: a section names no memory, or memory that the" +
			" guest does" +
			" not have",
		fix:  "use a build of OVMF for SEV-SNP, and enough memory; \"latchkey firmware\" shows the sections",
		kind: fault.Spec,
	},
	{
		pattern: `kernel_hashes_data|kernel hashes.*not|Assertion .*kernel_hashes`,
		cause:   "QEMU did not hash the kernel, for it is not a bzImage: it loads others by another way",
		fix:     "use the kernel's bzImage (next to a vmlinux: arch/x86/boot/bzImage)",
		kind:    fault.Spec,
	},
	{
		pattern: `initrd is too large`,
		cause:   "the initrd does not fit the guest's memory",
		fix:     "raise memory in the spec, or make the initrd smaller",
		kind:    fault.Spec,
	},
	{
		pattern: `linux kernel too old to load a ram disk`,
		cause:   "the kernel takes no initrd: it is not Linux, such as a unified kernel image, or too old",
		fix:     "leave initrd out; a unified kernel image brings its own",
		kind:    fault.Spec,
	},
	{
		pattern: `Invalid SMP CPUs|exceeds the (?:recommended|maximum) cpus supported`,
		cause:   "the VM has more vCPUs than the machine type, or KVM on this host, takes",
		fix:     "lower cpus",
		kind:    fault.Spec,
	},
	{
		pattern: `can't open backing store|unable to create backing store`,
		cause:   "the host has no huge pages where QEMU looks for them",
		fix:     "mount hugetlbfs on /dev/hugepages and let this user write there, or leave hugepages out",
		kind:    fault.Host,
	},
	{
		pattern: `preallocating memory failed|os_mem_prealloc`,
		cause:   "the host has too little free memory, or too few huge pages, to give the guest its memory at once",
		fix:     "lower memory, reserve more huge pages, or leave prealloc out",
		kind:    fault.Host,
	},
	{
		pattern: `inject secret ret=-22 `,
		cause:   "the place for the secret is not memory that the kernel can write at once",
		fix:     "use firmware with a launch secret area, such as OVMF.amdsev.fd, and start the VM again",
		kind:    fault.Host,
	},
	{
		pattern: `failed to find romfile`,
		cause:   "an option ROM of the device is not installed",
		fix:     `write romfile = "" for the device; Debian has the ROMs in ipxe-qemu`,
		kind:    fault.Host,
	},
	{
		pattern: `Could not open '[^']*': Permission denied`,
		cause:   "QEMU may not open a file that the VM needs",
		fix:     fault.FixRead,
		kind:    fault.Host,
	},
	{
		pattern: `invalid kernel header|could not load kernel|Error loading uncompressed kernel`,
		cause:   "QEMU cannot load the file as a kernel: it is not a bzImage, or is cut off",
		fix:     "name a kernel's bzImage, whole",
		kind:    fault.Spec,
	},
	{
		pattern: `KVM_SET_USER_MEMORY_REGION2? failed|error registering slot`,
		cause: "the kernel does not take the guest's memory as this QEMU lays it out: kernel and QEMU are out of" +
			" step, or" +
			" guest_memfd is not there",
		fix:  "use a kernel and a QEMU that belong together, or change memory by a little: 3GiB is where it is split",
		kind: fault.Host,
	},
	{
		pattern: `SNP_LAUNCH_UPDATE ret=-(?:5|12|14|16|22) fw_error=0 |SNP_LAUNCH_UPDATE called with invalid|` +
			`failed to configure initial\s?private|expected update of GPA range`,
		cause: "the kernel did not give the guest's pages to the platform: a page of the host's memory cannot be" +
			" private" +
			" (huge pages, another guest, too little memory), or the kernel is out of step",
		fix: "leave hugepages out, free memory on the host, or update its kernel; its log says which page" +
			" (dmesg, SEV)",
		kind: fault.Host,
	},
	{
		pattern: `SNP_LAUNCH_FINISH.*fw_error=22 `,
		cause: "the platform does not take the ID block as it is: an author key is announced that did not sign, a" +
			" reserved" +
			" field is set, or the block is not whole",
		fix:  "make the ID block again, with --author-key if the host announces an author: latchkey idblock make",
		kind: fault.Refused,
	},
	{
		pattern: `failed to get platform status ret=-1 fw_error='?0`,
		cause: "the secure processor was not initialised when its driver was loaded, so KVM cannot ask it: the" +
			" firmware or the machine's setup refused it",
		fix: "look at the kernel's log (dmesg, lines with ccp or SEV); update the machine's setup and the SEV" +
			" firmware",
		kind: fault.Host,
	},
	{
		pattern: `require in-kernel irqchip|kernel.irqchip`,
		cause: "the guest's registers are protected, so KVM's own interrupt controller (irqchip) is needed," +
			" and is off",
		fix:  "leave kernel-irqchip=off out; a QEMU that is run by another program may set it",
		kind: fault.Spec,
	},
	{
		pattern: `[^_]LAUNCH_UPDATE(?:_DATA|_VMSA)? ret=-12 `,
		cause:   "QEMU may not pin the memory that is encrypted, or the host has too little of it (memlock)",
		fix:     "raise the limit of locked memory for QEMU's user, or free memory on the host",
		kind:    fault.Host,
	},
	{
		pattern: `(?i)IGVM`,
		cause: "QEMU does not take the IGVM file: it is damaged, for another platform, or uses headers that this" +
			" QEMU does" +
			" not know",
		fix: "build the file for SEV-SNP and this QEMU (latchkey firmware FILE shows its headers), or name a" +
			" newer QEMU",
		kind: fault.Spec,
	},
	{
		pattern: `Could not open backing file|Could not open .*: No such file`,
		cause:   "a disk image, or the backing file that it names, is not where it should be",
		fix:     "put the backing file back, or rebase the image (qemu-img rebase); the spec names it with backing =",
		kind:    fault.Spec,
	},
	{
		pattern: `Image is not in \S+ format|qcow2: .*corrupt|Image is corrupt`,
		cause:   "a disk image has another format than the spec says, or is damaged",
		fix:     "correct format, or repair the image (qemu-img check -r all)",
		kind:    fault.Spec,
	},
	{
		pattern: `kvm run failed|KVM internal error|KVM: entry failed`,
		cause: "the guest did something that KVM cannot go on from: its firmware is damaged or for another" +
			" technology, or" +
			" the kernel has a defect",
		fix: "try another build of the firmware; the kernel's log says more (dmesg, kvm)",
	},
	{
		pattern: `ID (?:auth )?block.*(?:incorrect size|not enabled)|sha384 digest was|ID auth block`,
		cause: "a value that the guest's owner bound to the launch has the wrong length, or the technology has no" +
			" place for it",
		fix:  "make the ID block again (latchkey idblock make), or give the value in hex, whole",
		kind: fault.Spec,
	},
	{
		pattern: `requires guest CPU physical bits|TDX doesn't support requested feature|TDX forcibly sets|unable` +
			` to query CPUID|` +
			`CPUID entry count|CPUID entries in kvm_tdx`,
		cause: "the technology does not let the guest have such a CPU",
		fix:   `write cpu = "host" for TDX, and a model that the processor has, without added features, for SEV-SNP`,
		kind:  fault.Spec,
	},
	{
		pattern: `doesn't support (?:PIC|SMM)|does not support SMM`,
		cause:   "the machine has a part that such guests cannot have",
		fix:     "leave the property out of machine; a QEMU that was started by hand needs smm=off",
		kind:    fault.Spec,
	},
	{
		pattern: `SEV-ES reset address is zero`,
		cause:   "the firmware does not say where further processors start, so the guest can have only one",
		fix:     "use a build of OVMF for SEV-ES, or one CPU",
		kind:    fault.Spec,
	},
	{
		pattern: `VMSA|sev_features|attempt to configure|unable to set CPU context|confidential guest` +
			` (?:state|policy|memory map)|` +
			`Invalid guest policy type`,
		cause: "the register pages that the launch brings are for another technology, or ask for features that this" +
			" kernel does not offer",
		fix:  "use a file for the spec's technology, and a kernel that has the features",
		kind: fault.Spec,
	},
	{
		pattern: `accelerator does not support confidential guest`,
		cause:   "confidential guests need KVM",
		fix:     `leave accel out, or write accel = "kvm"`,
		kind:    fault.Spec,
	},
	{
		pattern: `KVM_CREATE_VCPU|kvm_init_vcpu|kvm_arch_init_vcpu`,
		cause:   "KVM could not make a virtual CPU: too many, an id that it does not take, or no memory for it",
		fix:     "lower cpus, or free memory on the host",
		kind:    fault.Host,
	},
	{
		pattern: `C-bit position|(?:cbitpos|reduced_phys_bits) check failed`,
		cause:   "the position of the encryption bit is another processor's",
		fix: "leave it to vmlatch, which asks the processor; a QEMU that was started by hand needs cbitpos of" +
			" this host",
		kind: fault.Host,
	},
	{
		pattern: `SEV-SNP.*(?:restricted memory|guest_memfd|discard)|guest_memfd.*not supported|KVM does not` +
			` support guest_memfd|` +
			`Error creating KVM guest_memfd(?:$|: (?:Invalid argument|Inappropriate|Function not|Operation not))`,
		cause: "this kernel has no guest_memfd, which private memory comes from",
		fix:   "install a newer kernel: Linux 6.11 for SEV-SNP, 6.16 for TDX",
		kind:  fault.Host,
	},
}
