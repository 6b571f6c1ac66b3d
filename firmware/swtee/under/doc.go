// Package under runs an unmodified QEMU on an emulated platform from underneath:
// it answers the system calls by which QEMU reaches /dev/sev and KVM's memory
// encryption. QEMU's own sev-guest, sev-snp-guest and tdx-guest code runs as it
// does on real hardware. With a fake KVM it answers for /dev/kvm too: then a
// guest is launched, measured and given its secret on any Linux, without
// privileges, but never executes.
//
// Sources: Linux, arch/x86/include/uapi/asm/kvm.h, include/uapi/linux/kvm.h,
// include/uapi/linux/psp-sev.h, Documentation/virt/kvm/x86/amd-memory-encryption.rst,
// Documentation/virt/kvm/x86/intel-tdx.rst; QEMU, target/i386/sev.c, target/i386/kvm.
package under
