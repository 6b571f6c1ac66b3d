package ovmftest

import (
	"encoding/binary"
	"slices"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/uefivar"
)

// AmdSev makes an image with the tables of edk2's AmdSev build of 2026.08, which
// checks kernels and takes secrets: SEV, SEV-ES, SEV-SNP with kernel hashes, TDX.
// Options come after the build's own.
func AmdSev(options ...Option) []byte {
	return build(options,
		ResetBlock(0x80b004),
		SecretArea(0x810000, 0xc00),
		HashArea(0x810c00, 0x400),
		SEVMetadata(
			ovmf.Section{GPA: 0x800000, Size: 0x9000, Type: ovmf.SectionMemory},
			ovmf.Section{GPA: 0x80a000, Size: 0x3000, Type: ovmf.SectionMemory},
			ovmf.Section{GPA: 0x80d000, Size: 0x1000, Type: ovmf.SectionSecrets},
			ovmf.Section{GPA: 0x80e000, Size: 0x1000, Type: ovmf.SectionCPUID},
			ovmf.Section{GPA: 0x80f000, Size: 0x1000, Type: ovmf.SectionSVSMCAA},
			ovmf.Section{GPA: 0x811000, Size: 0x1f000, Type: ovmf.SectionMemory},
			ovmf.Section{GPA: 0x810000, Size: 0x1000, Type: ovmf.SectionKernelHashes},
		),
	)
}

// Generic makes an image with the tables of edk2's ordinary build of 2022.11: it
// names areas for kernel hashes and secrets, both of size 0, as it supports
// neither. It runs under SEV, SEV-ES, SEV-SNP and TDX.
// Options come after the build's own.
func Generic(options ...Option) []byte {
	return build(options,
		ResetBlock(0x80b004),
		SecretArea(0, 0),
		HashArea(0, 0),
		SEVMetadata(
			ovmf.Section{GPA: 0x800000, Size: 0x9000, Type: ovmf.SectionMemory},
			ovmf.Section{GPA: 0x80a000, Size: 0x3000, Type: ovmf.SectionMemory},
			ovmf.Section{GPA: 0x80d000, Size: 0x1000, Type: ovmf.SectionSecrets},
			ovmf.Section{GPA: 0x80e000, Size: 0x1000, Type: ovmf.SectionCPUID},
			ovmf.Section{GPA: 0x80f000, Size: 0x11000, Type: ovmf.SectionMemory},
		),
	)
}

// build makes an image with the tables of a build, and with what both builds have.
// WithPlatformKey makes the AmdSev build with a store of variables in which Secure Boot is on.
func WithPlatformKey() []byte {
	image := AmdSev(ResetVector())
	store := uefivar.GUIDStore
	le := binary.LittleEndian
	b := append(store[:], 0, 4, 0, 0, 0x5a, 0xfe, 0, 0, 0, 0, 0, 0) // 1024 bytes, formatted, healthy
	v := make([]byte, 60)
	copy(v[44:], uefivar.GUIDGlobal[:])
	le.PutUint16(v, 0x55aa)
	v[2] = 0x3f // valid
	le.PutUint32(v[36:], 6)
	le.PutUint32(v[40:], 4)
	b = append(append(b, v...), "P\x00K\x00\x00\x00key."...)
	copy(image[0x48:], append(b, 0xff, 0xff)) // no variable follows
	return image
}

func build(options []Option, tables ...Option) []byte {
	size := sizeOf(options)
	return Image(slices.Concat(tables, []Option{tdvf(size)}, volumes(size), options)...)
}

func sizeOf(options []Option) int {
	b := &builder{size: DefaultSize}
	for _, o := range options {
		o(b)
	}
	return b.size
}

// variables is the size of the variable store, of an image of that size.
func variables(size int) int { return size / 4 &^ 0xfff }

func volumes(size int) []Option {
	vars := variables(size)
	return []Option{Volume(0, vars), Volume(vars, size-vars)}
}

// tdvf is TDX metadata as OVMF has it (OvmfPkg/ResetVector/X64/TdxMetadata.asm):
// code, which is measured, variables and memory, which are not.
func tdvf(size int) Option {
	const extend = 1
	vars := uint32(variables(size))
	code := uint32(size) - vars
	top := uint64(1<<32) - uint64(size)
	return TDXMetadata(
		ovmf.TDXSection{
			FileOffset: vars, FileSize: code,
			GPA: top + uint64(vars), Size: uint64(code), Type: 0, Attributes: extend,
		},
		ovmf.TDXSection{FileSize: vars, GPA: top, Size: uint64(vars), Type: 1},
		ovmf.TDXSection{GPA: 0x810000, Size: 0x10000, Type: 3},
		ovmf.TDXSection{GPA: 0x80b000, Size: 0x2000, Type: 3},
		ovmf.TDXSection{GPA: 0x809000, Size: 0x2000, Type: 2},
		ovmf.TDXSection{GPA: 0x800000, Size: 0x6000, Type: 3},
	)
}
