// Package front runs QEMU with its monitors behind this program: clients talk to the emulated
// platform, which answers some commands itself and passes the others on. It also drives QEMU's
// memory through qtest. QEMU's monitors and its qtest can be reached in no other way.
//
// Source: QEMU, docs/interop/qmp-spec.rst.
package front
