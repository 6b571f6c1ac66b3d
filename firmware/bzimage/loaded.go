package bzimage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
)

// ErrVGA says that the command line makes QEMU write another field of the kernel's header.
var ErrVGA = errors.New("with vga= QEMU writes the video mode into the kernel's header")

// Offsets in a kernel's setup header (Linux, Documentation/arch/x86/boot.rst).
const (
	offLoader      = 0x210 // u8, type_of_loader
	offFlags       = 0x211 // u8, loadflags; bit 7: CAN_USE_HEAP
	offRamdisk     = 0x218 // u32
	offRamdiskSize = 0x21c // u32
	offHeapEnd     = 0x224 // u16
	offCmdline     = 0x228 // u32
	offInitrdMax   = 0x22c // u32, since 2.03
	offXLoadFlags  = 0x236 // u16; bit 1: CAN_BE_LOADED_ABOVE_4G
	setupEnd       = 0x260
)

// HasHeader reports whether a file has a kernel's setup header, into which QEMU writes.
func HasHeader(b []byte) bool {
	return len(b) >= setupEnd && string(b[offMagic:offMagic+4]) == "HdrS"
}

// Below4G is how much of a guest's memory, in bytes, lies below 4 GiB on q35 (QEMU,
// hw/i386/pc_q35.c, pc_q35_init).
func Below4G(memory uint64) uint64 {
	const split, low = 0xb0000000, 2 << 30
	if memory >= split {
		return low
	}
	return memory
}

// Patched is a kernel as firmware gets it from a QEMU that fills in its setup header: all before
// 10.0, and later ones where the firmware does not ask for the file as it is (x86_load_linux).
// memory is the guest's, in bytes; initrd is its size, 0 if there is none. The file must have a
// header.
func Patched(kernel []byte, memory uint64, initrd int64, cmdline string) ([]byte, error) {
	if strings.Contains(cmdline, "vga=") { // anywhere, as QEMU sees it
		return nil, ErrVGA
	}
	le := binary.LittleEndian
	b := bytes.Clone(kernel)
	protocol := le.Uint16(b[offVersion:])
	b[offLoader] = 0xb0
	if protocol >= 0x201 {
		b[offFlags] |= 0x80
		le.PutUint16(b[offHeapEnd:], 0xfe00)
	}
	if protocol >= 0x202 {
		le.PutUint32(b[offCmdline:], 0x20000)
	}
	if initrd == 0 {
		return b, nil
	}
	most := uint64(0x37ffffff)
	switch {
	case protocol >= 0x20c && le.Uint16(b[offXLoadFlags:])&2 != 0:
		most = 0xffffffff
	case protocol >= 0x203:
		most = uint64(le.Uint32(b[offInitrdMax:]))
	}
	if room := Below4G(memory); room <= tables || most >= room-tables {
		if room <= tables {
			return nil, errors.New("the guest has no memory for an initrd")
		}
		most = room - tables - 1
	}
	if uint64(initrd) >= most {
		return nil, errors.New("the initrd does not fit the guest's memory")
	}
	le.PutUint32(b[offRamdisk:], uint32((most-uint64(initrd))&^0xfff))
	le.PutUint32(b[offRamdiskSize:], uint32(initrd))
	return b, nil
}

// LoadOptions are those that firmware gives a kernel of -kernel, as the EFI stub measures them:
// each byte as a character of 16 bits, whatever its encoding means, with a NUL. Older firmware
// (suffix) puts initrd= behind the command line, newer before it.
func LoadOptions(cmdline string, initrd, suffix bool) []byte {
	switch {
	case !initrd:
	case suffix:
		cmdline += " initrd=initrd"
	default:
		cmdline = "initrd=initrd " + cmdline
	}
	b := make([]byte, 0, 2*len(cmdline)+2)
	for i := range len(cmdline) {
		b = append(b, cmdline[i], 0)
	}
	return append(b, 0, 0)
}
