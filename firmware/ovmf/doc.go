// Package ovmf reads OVMF firmware images: the GUIDed table at their end, with
// the areas that confidential launches need, the SEV and TDX metadata it points
// to, and QEMU's firmware descriptors, by which an image is found.
//
// Start with [Parse] for an image and [FindDescriptors] for a machine.
// Images are outside bytes: every offset and length is checked, errors are
// [*Error] and wrap [ErrFormat].
//
// Sources: edk2, OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm and
// OvmfMetadata.asm ("ResetVector"); QEMU, hw/i386/pc_sysfw_ovmf.c and
// docs/interop/firmware.json ("firmware.json").
package ovmf
