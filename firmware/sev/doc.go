// Package sev holds what AMD's Secure Encrypted Virtualization defines outside
// the guest: policies, certificates and their chain, the launch digest and the
// launch measurement, and the names of the firmware's status codes.
//
// Nothing in here touches an owner's keys. Whatever needs the TIK or the TEK
// lives in the sub-package session, which the host's programs never link.
//
// Start with [Chain.Verify], which decides whether a platform is genuine. What a
// platform will measure is predicted by the sub-package launch.
//
// Sources, named in the comments below by their short titles:
//   - "SEV API": AMD, Secure Encrypted Virtualization API, publication 55766, revision 3.24.
//   - "SNP ABI": AMD, SEV Secure Nested Paging Firmware ABI, publication 56860, revision 1.58.
//   - "OVMF": edk2, OvmfPkg/AmdSev and OvmfPkg/ResetVector.
//   - "QEMU": target/i386/sev.c.
package sev
