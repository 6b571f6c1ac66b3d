// Package bzimage reads of a kernel image what decides how QEMU loads it, and what the
// kernel's loader does with its command line.
//
// Sources: "QEMU", hw/i386/x86-common.c, x86_load_linux, and multiboot.c; "Linux",
// Documentation/arch/x86/boot.rst.
package bzimage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"

	"github.com/vmlatch/vmlatch/firmware/regular"
)

// ErrNotLinux is wrapped by errors about files that QEMU does not load as Linux, and so does
// not measure, or that nothing can boot.
var ErrNotLinux = errors.New("not a bzImage")

// Image is what a kernel image says of itself.
type Image struct {
	// Protocol is the version of the boot protocol, 0x020f for 2.15; 0 for the oldest
	// kernels, which have none.
	Protocol uint16
	// CmdlineSize is the longest command line, in bytes without the terminator; what is
	// longer the kernel cuts off. 0 if the image does not say.
	CmdlineSize int
	// EFI is a program for UEFI without a Linux header, such as a unified kernel image:
	// QEMU passes it to the firmware, and measures it, as it does a bzImage.
	EFI bool
}

// Offsets in the header (Linux, boot.rst, "The Real-Mode Kernel Header").
const (
	offSetupSects  = 0x1f1 // u8, sectors of 512 bytes behind the first
	offSyssize     = 0x1f4 // u32, paragraphs of 16 bytes of the protected-mode code
	offBootFlag    = 0x1fe // u16
	offMagic       = 0x202 // "HdrS"
	offVersion     = 0x206 // u16
	offCmdlineSize = 0x238 // u32, since 2.06

	bootFlag   = 0xaa55
	headerSize = 8 << 10 // QEMU reads as much
	oldCmdline = 255     // before 2.06
	tables     = 0x28000 // bytes that QEMU keeps for ACPI's, above an initrd
)

// Read reads a kernel image's header.
func Read(name string) (*Image, error) {
	in, err := regular.OpenInput(name, 1<<32-1)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	size, ok := in.Size()
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, regular.ErrNotRegular)
	}
	b := make([]byte, min(size, headerSize))
	if _, err := io.ReadFull(in, b); err != nil {
		return nil, err
	}
	return Parse(b, size)
}

// Parse reads the header of an image of so many bytes, of which b is the beginning: 8 KiB
// or all of it.
func Parse(b []byte, size int64) (*Image, error) {
	not := func(format string, args ...any) (*Image, error) {
		return nil, fmt.Errorf("%w: %s", ErrNotLinux, fmt.Sprintf(format, args...))
	}
	le := binary.LittleEndian
	has := func(off, n int) bool { return len(b) >= off+n }
	linux := has(offVersion, 2) && string(b[offMagic:offMagic+4]) == "HdrS"
	switch {
	case size == 0:
		return not("the file is empty")
	case !linux && isMultiboot(b):
		return not("a multiboot kernel, which QEMU loads by another way and does not measure")
	case !linux && has(0, 4) && string(b[:4]) == "\x7fELF":
		return not("an ELF file, which QEMU loads by another way (PVH) and does not measure;" +
			" next to a vmlinux there is arch/x86/boot/bzImage")
	case !linux && has(0, 2) && b[0] == 0x1f && b[1] == 0x8b:
		return not("a gzip file")
	case !linux && isEFI(b):
		return &Image{EFI: true}, nil
	case !linux && (!has(offBootFlag, 2) || le.Uint16(b[offBootFlag:]) != bootFlag):
		return not("no Linux kernel for x86: it has no boot sector")
	}
	sectors := int64(b[offSetupSects])
	if sectors == 0 {
		sectors = 4
	}
	setup := (sectors + 1) * 512
	if setup > size {
		return not("cut off: its setup code has %d bytes, the file %d", setup, size)
	}
	if !linux {
		return &Image{}, nil
	}
	i := &Image{Protocol: le.Uint16(b[offVersion:]), CmdlineSize: oldCmdline}
	if i.Protocol >= 0x206 && has(offCmdlineSize, 4) {
		i.CmdlineSize = int(min(le.Uint32(b[offCmdlineSize:]), 1<<20))
	}
	if code := int64(le.Uint32(b[offSyssize:])) * 16; i.Protocol >= 0x204 && setup+code-16 > size {
		return not("cut off: it should have %d bytes, and has %d", setup+code, size)
	}
	return i, nil
}

// isEFI reports whether an image begins as a PE file for x86-64 does (Microsoft, PE Format,
// "Signature" and "COFF File Header").
func isEFI(b []byte) bool {
	const offPE, machineAMD64 = 0x3c, 0x8664
	if len(b) < offPE+4 || string(b[:2]) != "MZ" {
		return false
	}
	at := uint64(binary.LittleEndian.Uint32(b[offPE:]))
	return at+6 <= uint64(len(b)) && string(b[at:at+4]) == "PE\x00\x00" &&
		binary.LittleEndian.Uint16(b[at+4:]) == machineAMD64
}

// Initrd says why QEMU would not load an initrd of so many bytes next to the kernel into a
// guest with so much memory below 4 GiB; "" if it would.
func (i *Image) Initrd(size int64, most uint64) string {
	switch {
	case i.EFI:
		return "QEMU passes an initrd only to Linux kernels; a unified kernel image brings its own"
	case i.Protocol < 0x200:
		return "the kernel's boot protocol is too old for an initrd"
	case most <= tables || uint64(size) >= most-tables-1:
		return fmt.Sprintf("the initrd has %d MiB, which do not fit the guest's memory", (size+1<<20-1)>>20)
	}
	return ""
}

// isMultiboot looks for a multiboot header as QEMU does.
func isMultiboot(b []byte) bool {
	const magic = 0x1badb002
	le := binary.LittleEndian
	for off := 0; off+12 <= len(b) && off < headerSize-48; off += 4 {
		if le.Uint32(b[off:]) == magic && le.Uint32(b[off+4:])+magic+le.Uint32(b[off+8:]) == 0 {
			return true
		}
	}
	return false
}

// Unusual says which characters of a command line no option of a kernel has: word processors
// and web pages put them in the place of hyphens, quotes and spaces, and the kernel ignores the
// option then. "" if there is none.
func Unusual(cmdline string) string {
	for _, r := range cmdline {
		if r > unicode.MaxASCII && !unicode.IsLetter(r) || unicode.IsControl(r) && r != '\n' && r != '\t' {
			return fmt.Sprintf("it contains %U (%q), which no option of a kernel has", r, r)
		}
	}
	return ""
}

// Cut says what a kernel does with a command line that is too long for it; "" if it is not.
func (i *Image) Cut(cmdline string) string {
	if i.CmdlineSize == 0 || len(cmdline) <= i.CmdlineSize {
		return ""
	}
	return fmt.Sprintf("the command line has %d bytes, of which this kernel takes the first %d and drops the rest",
		len(cmdline), i.CmdlineSize)
}

// offRelease points to the release, from the end of the first sector (Linux, boot.rst,
// kernel_version).
const offRelease = 0x20e

// Release is the release of a Linux kernel, as "6.12.95-amd64"; "" if the image has none. b is
// the image, or its beginning up to the end of the setup code.
func Release(b []byte) string {
	if len(b) < offRelease+2 || string(b[offMagic:offMagic+4]) != "HdrS" {
		return ""
	}
	at := int(binary.LittleEndian.Uint16(b[offRelease:]))
	if at == 0 || at+0x200 >= len(b) {
		return ""
	}
	text := b[at+0x200 : min(at+0x200+128, len(b))]
	release, _, _ := bytes.Cut(text, []byte{0})
	release, _, _ = bytes.Cut(release, []byte{' '})
	return string(release)
}

// AtLeast reports whether a release, such as "6.12.95-amd64", is of a version or a newer one; known
// is false if it does not begin with a version.
func AtLeast(release string, major, minor int) (newer, known bool) {
	first, rest, _ := strings.Cut(release, ".")
	second, _, _ := strings.Cut(rest, ".")
	a, err1 := strconv.Atoi(first)
	b, err2 := strconv.Atoi(strings.TrimRight(second, "abcdefghijklmnopqrstuvwxyz-+_"))
	return a > major || a == major && b >= minor, err1 == nil && err2 == nil
}
