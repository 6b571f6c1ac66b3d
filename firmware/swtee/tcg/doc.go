// Package tcg runs an unmodified QEMU under TCG on an emulated platform. It takes
// the confidential objects out of the command line, stands between QEMU's
// monitors and their clients, and answers the SEV commands itself. It puts the
// kernel hash table and the secret into guest memory where the firmware looks for
// them, so the guest really boots and really finds its secret.
//
// Sources: QEMU, target/i386/sev.c, docs/devel/testing/qtest.rst,
// docs/specs/fw_cfg.rst.
package tcg
