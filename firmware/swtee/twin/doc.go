// Package twin runs one command line in two QEMUs, so that a confidential guest is really launched
// and really boots without the hardware. The oracle is QEMU with the confidential object, on the
// emulated platform and a fake KVM: its own code measures and launches, and its own words say what
// is wrong. The twin is the same QEMU under TCG without the object: it has the devices, and the
// guest runs there. Both are given the same bytes, and what the launch submitted is compared with
// what the twin has before it runs. A running guest asks the emulated platform for evidence through
// a port ([github.com/vmlatch/vmlatch/firmware/swtee/port]).
//
// What the guest sees is not protected: its memory is plain, its kernel finds no SEV and no TDX.
//
// Sources: QEMU, target/i386/sev.c, target/i386/kvm/tdx.c, hw/core/machine.c (what confidential
// guest support does to a machine).
package twin
