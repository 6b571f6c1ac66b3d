// Package swtee is an emulated secure processor and TDX module: it is to SEV and
// TDX what swtpm is to a TPM. It gives the sequence, the states, the error codes
// and the cryptography of a launch, and no protection at all: memory stays plain,
// the keys are in a file, and its certificates end in its own root, which no owner
// trusts unless told to.
//
// This package is the firmware: [Platform] with its keys, [Firmware] while it
// runs, and the guests [Guest] (SEV, SEV-ES), [SNPGuest] and [TD], state machines
// over bytes that know nothing about QEMU. [Fault] makes it fail on purpose, [Report]
// lists what it was given. Two front ends share it: package under answers the system
// calls that QEMU's own code makes; package tcg takes the place of that code and lets
// the guest boot.
//
// Sources: "SEV API", AMD publication 55766; "SNP ABI", AMD publication 56860;
// "TDX ABI", Intel publication 348551; Linux, arch/x86/kvm/svm/sev.c.
package swtee
