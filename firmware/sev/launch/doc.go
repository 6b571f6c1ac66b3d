// Package launch predicts the launch digests of SEV, SEV-ES and SEV-SNP guests:
// the bytes that a platform measures when it runs exactly the given firmware,
// kernel and virtual processors.
//
//   - SEV: SHA-256 over the firmware image and, with kernel-hashes, the 176-byte
//     table of kernel hashes.
//   - SEV-ES: the same, followed by one page of register state for each vCPU.
//   - SEV-SNP: a SHA-384 chain over pages: the firmware upward to 4 GiB, the
//     sections of its SEV metadata in the table's order, one register page for
//     each vCPU.
//
// Where virtual machine monitors, or implementations of this calculation, differ
// there is a field to choose, and its zero value is what QEMU does: [VMM],
// [Profile], sev_features.
//
// Sources: "SEV API", AMD publication 55766; "SNP ABI", AMD publication 56860;
// "APM", AMD64 Architecture Programmer's Manual, volume 2, appendix B (VMSA);
// "QEMU", target/i386/sev.c; "Linux", arch/x86/kvm/svm/sev.c; "ResetVector",
// edk2, OvmfPkg/ResetVector. EC2's and GCE's rules are those of sev-snp-measure
// and gce-tcb-verifier.
package launch
