// Package seal seals secrets to a TPM, so that it gives them only to a machine that has booted as
// their owner wants: to fixed values of registers (PCRs), or to those that an owner's key approves.
// It works without the TPM: what is sealed is encrypted to its storage root key (SRK).
//
// What is sealed, and approvals, are JSON in the form of LUKS2 tokens, so that a disk can carry
// them. Whoever can write them can only withhold the secret.
//
// Files: sealed.go seals and unseals, approval.go has owners' approvals, policy.go what the TPM is
// asked to check, keys.go public keys, luks.go tokens of disks and systemd.go those of
// systemd-cryptenroll.
//
// Sources: "part 1" to "part 3" are those of the TCG TPM 2.0 Library, revision 1.59; LUKS2 On-Disk
// Format Specification 1.1.4, section 3.6.
package seal
