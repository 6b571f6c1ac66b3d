package ovmf

import (
	"bytes"
	"fmt"
)

// Looks says why a file can be no firmware image for x86 as QEMU maps it; "" if it may be
// one. sure is whether that is beyond doubt: the file is of another kind.
func Looks(b []byte) (why string, sure bool) {
	for _, kind := range []struct{ magic, what string }{
		{"QFI\xfb", `a qcow2 image, not a firmware image; "qemu-img convert -O raw" makes one`},
		{"\x7fELF", "an ELF file"},
		{"\x1f\x8b", "a gzip file"},
		{"\xfd7zXZ", "an xz file"},
		{"\x28\xb5\x2f\xfd", "a Zstandard file"},
		{"PK\x03\x04", "a zip file"},
		{"\x55\xaa", "an option ROM"},
	} {
		if bytes.HasPrefix(b, []byte(kind.magic)) {
			return "it is " + kind.what, true
		}
	}
	if len(b) < 16 || !jumps(b[len(b)-16:]) {
		return "it has no reset vector: its last 16 bytes, where a processor starts, do not jump anywhere" +
			" (a variable store, firmware of another architecture, or no firmware at all)", false
	}
	if len(b)%page != 0 {
		return fmt.Sprintf("it has %d bytes, and QEMU maps only whole pages (it is cut off, or padded)", len(b)), false
	}
	return "", false
}

// jumps reports whether code begins as reset vectors do: with a jump, perhaps after
// instructions that real ones have before it.
func jumps(code []byte) bool {
	for _, before := range []string{
		"\x90\x90",                     // nop (edk2 until 2020)
		"\x0f\x09",                     // wbinvd
		"\xfa",                         // cli (coreboot)
		"\x0f\x20\xc0\xa8\x01\x74\x05", // mov eax, cr0; test al, 1; jz (edk2 with SEV-ES)
		"",
	} {
		if rest, ok := bytes.CutPrefix(code, []byte(before)); ok && len(rest) > 0 && rest[0] >= 0xe9 &&
			rest[0] <= 0xeb {
			return true
		}
	}
	return false
}
