package bzimage_test

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/bzimage"
	"github.com/vmlatch/vmlatch/firmware/ovmf/ovmftest"
)

func TestRead(t *testing.T) {
	edit := func(f func(b []byte)) []byte {
		b := ovmftest.Kernel()
		f(b)
		return b
	}
	put16 := func(off int, v uint16) func([]byte) {
		return func(b []byte) { binary.LittleEndian.PutUint16(b[off:], v) }
	}
	good := ovmftest.Kernel()
	multiboot := make([]byte, 8192)
	for i, v := range []uint32{0x1badb002, 3, 1<<32 - 0x1badb002 - 3} {
		binary.LittleEndian.PutUint32(multiboot[16+4*i:], v)
	}
	efi := func(machine uint16, at uint32) []byte {
		b := make([]byte, 4096)
		copy(b, "MZ")
		binary.LittleEndian.PutUint32(b[0x3c:], at)
		if int(at)+6 <= len(b) {
			copy(b[at:], "PE\x00\x00")
			binary.LittleEndian.PutUint16(b[at+4:], machine)
		}
		return b
	}
	for name, c := range map[string]struct {
		image    []byte
		protocol uint16
		cmdline  int
		want     string // of the error
	}{
		"a kernel":                 {good, 0x20f, 2047, ""},
		"padded":                   {append(ovmftest.Kernel(), make([]byte, 5000)...), 0x20f, 2047, ""},
		"of an old protocol":       {edit(put16(0x206, 0x203)), 0x203, 255, ""},
		"without the protocol":     {edit(func(b []byte) { clear(b[0x202:0x206]) }), 0, 0, ""},
		"without a boot flag":      {edit(put16(0x1fe, 0)), 0x20f, 2047, ""},
		"a program for UEFI":       {efi(0x8664, 0x80), 0, 0, ""},
		"a program for Arm's UEFI": {efi(0xaa64, 0x80), 0, 0, "no Linux kernel"},
		"a program for DOS":        {efi(0x8664, 1<<31), 0, 0, "no Linux kernel"},
		"without a sector count": {
			append(edit(func(b []byte) { b[0x1f1] = 0 }), make([]byte, 2048)...), 0x20f,
			2047, "",
		},
		"empty":             {nil, 0, 0, "the file is empty"},
		"text":              {[]byte(strings.Repeat("text\n", 4000)), 0, 0, "no Linux kernel"},
		"a short text":      {[]byte("text"), 0, 0, "no Linux kernel"},
		"ELF":               {append([]byte("\x7fELF"), make([]byte, 8192)...), 0, 0, "arch/x86/boot/bzImage"},
		"multiboot":         {multiboot, 0, 0, "multiboot"},
		"gzip":              {append([]byte{0x1f, 0x8b}, make([]byte, 8192)...), 0, 0, "gzip"},
		"cut in its setup":  {good[:1024], 0, 0, "cut off"},
		"cut in its code":   {good[:len(good)-100], 0, 0, "cut off"},
		"cut in its header": {good[:0x204], 0, 0, "cut off"},
	} {
		file := filepath.Join(t.TempDir(), "kernel")
		if err := os.WriteFile(file, c.image, 0o600); err != nil {
			t.Fatal(err)
		}
		i, err := bzimage.Read(file)
		if c.want != "" {
			if !errors.Is(err, bzimage.ErrNotLinux) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want ErrNotLinux with %q", name, err, c.want)
			}
			continue
		}
		if err != nil || i.Protocol != c.protocol || i.CmdlineSize != c.cmdline {
			t.Errorf("%s: %+v, %v, want protocol %#x and %d bytes", name, i, err, c.protocol, c.cmdline)
		}
	}
	if _, err := bzimage.Read("/nonexistent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

func TestCut(t *testing.T) {
	i := &bzimage.Image{CmdlineSize: 10}
	if got := i.Cut(strings.Repeat("x", 10)); got != "" {
		t.Errorf("10 of 10 bytes: %q, want nothing", got)
	}
	if got := i.Cut(strings.Repeat("x", 11)); !strings.Contains(got, "11 bytes") || !strings.Contains(got, "first 10") {
		t.Errorf("11 of 10 bytes: %q, want both lengths", got)
	}
	if got := (&bzimage.Image{}).Cut(strings.Repeat("x", 5000)); got != "" {
		t.Errorf("a kernel that does not say: %q, want nothing", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(ovmftest.Kernel(), int64(20000))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		if i, err := bzimage.Parse(b, size); err == nil && i.CmdlineSize < 0 {
			t.Fatal("a negative length")
		}
	})
}

// An initrd is only for Linux kernels of a protocol that has one, and must fit below 4 GiB.
func TestInitrd(t *testing.T) {
	linux := bzimage.Image{Protocol: 0x20f}
	const mib = 1 << 20
	for _, c := range []struct {
		image  bzimage.Image
		size   int64
		memory uint64
		want   string
	}{
		{linux, 20 * mib, 256 * mib, ""},
		{linux, 268271614, 256 * mib, ""},
		{linux, 268271615, 256 * mib, "256 MiB, which do not fit"}, // QEMU: "initrd is too large, cannot support"
		{linux, 3 << 30, 2 << 30, "do not fit"},
		{linux, 1, 1000, "do not fit"},
		{bzimage.Image{EFI: true}, 1, 256 * mib, "unified kernel image"},
		{bzimage.Image{Protocol: 0x1ff}, 1, 256 * mib, "too old"},
	} {
		if got := c.image.Initrd(c.size, c.memory); !strings.Contains(got, c.want) || (got == "") != (c.want == "") {
			t.Errorf("%+v, %d bytes in %d: %q, want %q", c.image, c.size, c.memory, got, c.want)
		}
	}
}

func TestUnusual(t *testing.T) {
	for line, want := range map[string]string{
		"console=ttyS0 quiet": "", "": "", "name=Zoë": "", "a\tb\n": "",
		"quiet\u00a0splash": "U+00A0", "panic=\u20131": "U+2013", "x=\u201ca b\u201d": "U+201C", "a\x1bb": "U+001B",
	} {
		if got := bzimage.Unusual(line); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

func TestRelease(t *testing.T) {
	image := func(at uint16, text string) []byte {
		b := make([]byte, 0x800)
		copy(b[0x202:], "HdrS")
		binary.LittleEndian.PutUint16(b[0x20e:], at)
		if at > 0 && int(at)+0x200 < len(b) {
			copy(b[int(at)+0x200:], text)
		}
		return b
	}
	for name, c := range map[string]struct {
		b    []byte
		want string
	}{
		"Debian's":       {image(0x300, "6.12.95-amd64 (debian@host) #1 SMP\x00"), "6.12.95-amd64"},
		"no spaces":      {image(0x300, "6.1\x00 x"), "6.1"},
		"none":           {image(0, ""), ""},
		"beyond the end": {image(0xffff, ""), ""},
		"at the end":     {image(0x5ff, "7"), "7"},
		"no kernel":      {make([]byte, 0x800), ""},
		"short":          {[]byte("HdrS"), ""},
	} {
		if got := bzimage.Release(c.b); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
