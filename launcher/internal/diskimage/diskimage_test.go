package diskimage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// qcow2 makes a header of version 3.
func qcow2(backing, format, data string) []byte {
	be := binary.BigEndian
	b := make([]byte, 4096)
	copy(b, "QFI\xfb")
	be.PutUint32(b[offVersion:], 3)
	be.PutUint32(b[offHeaderLength:], 104)
	at := 104
	extension := func(kind uint32, text string) {
		be.PutUint32(b[at:], kind)
		be.PutUint32(b[at+4:], uint32(len(text)))
		copy(b[at+8:], text)
		at += 8 + (len(text)+7)&^7
	}
	if format != "" {
		extension(extBackingFormat, format)
	}
	if data != "" {
		be.PutUint64(b[offIncompatible:], externalData)
		extension(extDataFile, data)
	}
	if backing != "" {
		be.PutUint64(b[offBacking:], 1024)
		be.PutUint32(b[offBackingSize:], uint32(len(backing)))
		copy(b[1024:], backing)
	}
	return b
}

func edited(b []byte, edit func([]byte)) []byte { edit(b); return b }

func TestRead(t *testing.T) {
	be := binary.BigEndian
	vpc := append(make([]byte, 4096), append([]byte("conectix"), make([]byte, 504)...)...)
	for name, c := range map[string]struct {
		head []byte
		want Info
	}{
		"raw":   {[]byte("boot sector"), Info{Format: "raw"}},
		"empty": {nil, Info{Format: "raw"}},
		"LUKS":  {[]byte("LUKS\xba\xbe"), Info{Format: "raw"}},
		"qcow2": {qcow2("", "", ""), Info{Format: "qcow2"}},
		"overlay": {
			qcow2("/etc/hostname", "raw", ""),
			Info{Format: "qcow2", Backing: "/etc/hostname", BackingFormat: "raw"},
		},
		"without format": {qcow2("base.img", "", ""), Info{Format: "qcow2", Backing: "base.img"}},
		"data elsewhere": {qcow2("", "", "data.raw"), Info{Format: "qcow2", DataFile: "data.raw"}},
		"data, not named": {
			edited(qcow2("", "", ""), func(b []byte) { b[offIncompatible+7] = 4 }),
			Info{Format: "qcow2", DataFile: "?"},
		},
		"version 2": {
			edited(qcow2("b", "", ""), func(b []byte) { be.PutUint32(b[4:], 2) }),
			Info{Format: "qcow2", Backing: "b"},
		},
		"version 9": {
			edited(qcow2("b", "", ""), func(b []byte) { be.PutUint32(b[4:], 9) }),
			Info{Format: "qcow2", Unusable: "it is of version 9 of qcow2, which QEMU does not know"},
		},
		"encrypted": {
			edited(qcow2("", "", ""), func(b []byte) { be.PutUint32(b[offCrypt:], 2) }),
			Info{
				Format:   "qcow2",
				Unusable: "it is encrypted by QEMU, whose key vmlatch does not take; encrypt inside the guest instead",
			},
		},
		"damaged, in use": {
			edited(qcow2("", "", ""), func(b []byte) { b[offIncompatible+7] = 3 }),
			Info{Format: "qcow2", Corrupt: true},
		},
		"features of later": {
			edited(qcow2("", "", ""), func(b []byte) { b[offIncompatible+7] = 0x38 }),
			Info{Format: "qcow2", Unusable: "it has features that QEMU does not know (0x20)"},
		},
		"version 1": {
			edited(qcow2("b", "", ""), func(b []byte) { be.PutUint32(b[4:], 1) }),
			Info{Format: "qcow"},
		},
		"vmdk":       {[]byte("KDMV\x01"), Info{Format: "vmdk"}},
		"vmdk, text": {[]byte("# Disk DescriptorFile\nversion=1"), Info{Format: "vmdk"}},
		"vdi":        {append(make([]byte, 0x40), "\x7f\x10\xda\xbe"...), Info{Format: "vdi"}},
		"vhdx":       {[]byte("vhdxfile"), Info{Format: "vhdx"}},
		"vhd, fixed": {vpc, Info{Format: "vpc"}},
	} {
		file := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(file, c.head, 0o600); err != nil {
			t.Fatal(err)
		}
		if c.want.Format == "raw" {
			c.want.Size = int64(len(c.head))
		}
		if got, err := Read(file); err != nil || *got != c.want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, c.want)
		}
	}
	for name, b := range map[string][]byte{
		"short":              []byte("QFI\xfb\x00\x00\x00\x03"),
		"a name outside":     edited(qcow2("b", "", ""), func(b []byte) { be.PutUint64(b[offBacking:], 1<<40) }),
		"a name of 4 GiB":    edited(qcow2("b", "", ""), func(b []byte) { be.PutUint32(b[offBackingSize:], 1<<32-1) }),
		"a name of 1024":     qcow2(strings.Repeat("x", 1024), "", ""),
		"an empty name":      edited(qcow2("b", "", ""), func(b []byte) { be.PutUint32(b[offBackingSize:], 0) }),
		"a long extension":   edited(qcow2("", "raw", ""), func(b []byte) { be.PutUint32(b[108:], 1<<32-1) }),
		"cut in extensions":  qcow2("", "", strings.Repeat("d", 300))[:200],
		"cut before its end": qcow2("", "", "")[:80],
	} {
		if got, err := Parse(b); !errors.Is(err, ErrHeader) {
			t.Errorf("%s: %+v, %v, want ErrHeader", name, got, err)
		}
	}
	if _, err := Read("/nonexistent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(qcow2("base", "raw", "data"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if i, err := Parse(b); err == nil && (i.Format == "" || len(i.Backing) > maxName) {
			t.Fatalf("%+v", i)
		}
	})
}

// TestOverlay: an overlay has its base's size and no name, and is an image that qemu-img finds
// nothing wrong with.
func TestOverlay(t *testing.T) {
	dir := t.TempDir()
	base := filepath.Join(dir, "base")
	for _, size := range []int64{512, 1 << 20, l1Covers + 512, 5 << 40} {
		if err := errors.Join(os.WriteFile(base, nil, 0o600), os.Truncate(base, size)); err != nil {
			t.Fatal(err)
		}
		f, err := Overlay(dir, base)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		file := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
		if info, err := Read(file); err != nil || info.Format != "qcow2" || info.Size != size {
			t.Errorf("%d bytes: %+v, %v", size, info, err)
		}
		if list, err := os.ReadDir(dir); err != nil || len(list) != 1 {
			t.Errorf("%v in the directory, %v", list, err)
		}
		program, err := exec.LookPath("qemu-img")
		if err != nil {
			continue
		}
		cmd := exec.Command(program, "check", "-f", "qcow2", "--output=json", "/proc/self/fd/3")
		cmd.ExtraFiles = []*os.File{f}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%d bytes: %v: %s", size, err, out)
		}
	}
	for name, make := range map[string]func() error{
		"empty":   func() error { return os.WriteFile(base, nil, 0o600) },
		"damaged": func() error { return os.WriteFile(base, []byte("QFI\xfb"), 0o600) },
		"missing": func() error { return os.Remove(base) },
	} {
		if err := make(); err != nil {
			t.Fatal(err)
		}
		if f, err := Overlay(dir, base); err == nil {
			t.Errorf("%s: %v", name, f.Name())
		}
	}
}
