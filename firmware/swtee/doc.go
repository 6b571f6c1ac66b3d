// Package swtee is an emulated secure processor: it is to SEV what swtpm is to
// a TPM. It gives the sequence, the states, the error codes and the
// cryptography of a launch, and no protection at all: memory stays plain, the
// keys lie in a file, and its certificates end in a root of its own that no
// owner trusts unless told to.
//
// The package has two layers. [Platform] and [Guest] are the firmware: pure
// state machines over bytes that know nothing of QEMU, so that any front end
// can share them. [RunTCG] is a front end: it runs an unmodified QEMU under
// TCG, takes the confidential objects out of its command line, stands between
// its monitors and their clients, and answers the SEV commands itself. It puts
// the kernel hash table and the secret into guest memory where the firmware
// looks for them, so the guest really boots and really finds its secret.
//
// Sources: SEV API (AMD publication 55766); QEMU, target/i386/sev.c,
// docs/devel/testing/qtest.rst, docs/specs/fw_cfg.rst.
package swtee
