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
	for name, c := range map[string]struct {
		image    []byte
		protocol uint16
		cmdline  int
		want     string // of the error
	}{
		"a kernel":             {good, 0x20f, 2047, ""},
		"padded":               {append(ovmftest.Kernel(), make([]byte, 5000)...), 0x20f, 2047, ""},
		"of an old protocol":   {edit(put16(0x206, 0x203)), 0x203, 255, ""},
		"without the protocol": {edit(func(b []byte) { clear(b[0x202:0x206]) }), 0, 0, ""},
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
