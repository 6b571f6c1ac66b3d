package sev_test

import (
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/vmlatch/vmlatch/firmware/firstboot"
	"github.com/vmlatch/vmlatch/firmware/sev"
)

func TestHashFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	kernel, initrd, zeros := write("kernel", "a kernel"), write("initrd", "an initrd"), write("zeros", "\x00\x00")
	for file, text := range map[string]string{kernel: "a kernel", zeros: "\x00\x00", write("empty", ""): ""} {
		if got, err := sev.HashFile(file); err != nil || got != sha256.Sum256([]byte(text)) {
			t.Errorf("%s: %x, %v, want the hash of %q", filepath.Base(file), got, err, text)
		}
	}
	want, err := sev.HashKernel(strings.NewReader("a kernel"), strings.NewReader("an initrd"), "quiet")
	if err != nil {
		t.Fatal(err)
	}
	if want.Cmdline != sha256.Sum256([]byte("quiet\x00")) {
		t.Errorf("cmdline %x, want the hash of the string and a NUL", want.Cmdline)
	}
	if got, err := sev.HashKernelFiles(kernel, firstboot.Initrd{File: initrd}, "quiet"); err != nil || got != want {
		t.Errorf("of files: %+v, %v, want %+v", got, err, want)
	}
	got, err := sev.HashKernelFiles(kernel, nil, "")
	if err != nil || got.Initrd != sha256.Sum256(nil) || got.Cmdline != sha256.Sum256([]byte{0}) {
		t.Errorf("without initrd: %+v, %v, want the hashes of nothing and of a NUL", got, err)
	}
	missing := filepath.Join(dir, "missing")
	if _, err := sev.HashFile(missing); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v, want ErrNotExist", err)
	}
	if _, err := sev.HashKernelFiles(missing, firstboot.Initrd{File: initrd}, ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing kernel: %v, want ErrNotExist", err)
	}
	if _, err := sev.HashKernelFiles(kernel, firstboot.Initrd{File: missing}, ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing initrd: %v, want ErrNotExist", err)
	}
	broken := errors.New("broken")
	if _, err := sev.HashKernel(iotest.ErrReader(broken), nil, ""); !errors.Is(err, broken) {
		t.Errorf("a kernel that cannot be read: %v, want its error", err)
	}
}

func TestMeasurementBytes(t *testing.T) {
	b := make([]byte, sev.MeasurementSize)
	for i := range b {
		b[i] = byte(i + 1)
	}
	m, err := sev.ParseMeasurement(b)
	if err != nil || m.MAC[31] != 32 || m.Nonce[0] != 33 || m.Nonce[15] != 48 || string(m.Bytes()) != string(b) {
		t.Errorf("%+v, %v, want the MAC and the nonce behind it", m, err)
	}
	for _, n := range []int{0, 47, 49} {
		if _, err := sev.ParseMeasurement(make([]byte, n)); err == nil {
			t.Errorf("%d bytes are a measurement, want an error", n)
		}
	}
}

func TestHashAreaHolds(t *testing.T) {
	for area, want := range map[sev.HashArea]bool{
		{Base: 0x810c00, Size: 0x400}:                 true,
		{Base: 1, Size: sev.HashTableSize}:            true,
		{Base: 0x810c00, Size: sev.HashTableSize - 1}: false,
		{Base: 0, Size: 0x400}:                        false,
		{}:                                            false,
	} {
		if got := area.Holds(); got != want {
			t.Errorf("%+v holds the table: %t, want %t", area, got, want)
		}
	}
}
