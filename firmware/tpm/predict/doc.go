// Package predict works out, without booting, which values a measured boot leaves in the registers
// (PCRs) of a TPM 2.0, from the files that a machine boots; and explains by an event log which of
// them a boot did not have.
//
// Each register is marked exact, dependent on a condition that is named, or unknown with its cause.
// A value is never guessed.
//
// Files: firmware.go reads what of a firmware decides, secureboot.go the keys, tables.go ACPI and
// SMBIOS, uki.go unified kernel images, gpt.go partitions; boot.go has what firmware measures and
// linux.go what kernels do; predict.go puts it together and explain.go holds it against a log;
// initrd.go hashes an initial RAM disk, and table.go reads a table that a person keeps.
//
// Sources: "TCG" is TCG PC Client Platform Firmware Profile 1.06; "edk2", SecurityPkg/Tcg and
// OvmfPkg; "QEMU", hw/i386/x86-common.c; "Linux", drivers/firmware/efi/libstub; "systemd",
// src/boot. All of it was compared with the logs of real boots.
package predict
