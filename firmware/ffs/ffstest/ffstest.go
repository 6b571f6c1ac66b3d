// Package ffstest makes firmware volumes for tests.
package ffstest

import (
	"bytes"
	"encoding/binary"
	"testing"
	"unicode/utf16"

	"github.com/ulikunitz/xz/lzma"

	"github.com/vmlatch/vmlatch/firmware/ffs"
	"github.com/vmlatch/vmlatch/firmware/guid"
)

// File systems of volumes.
var (
	GUIDFFS2      = guid.MustParse("8c8ce578-8a3d-4f1c-9935-896185c32dd3")
	GUIDFFS3      = guid.MustParse("5473c07a-3dcb-4dca-bd6f-1e9689e7349a")
	GUIDVariables = guid.MustParse("fff12b8d-7696-4c8b-a985-2747075b4f50")
)

// Types of sections that only tests make.
const (
	GUIDed  ffs.SectionKind = 0x02
	Version ffs.SectionKind = 0x14
	Name    ffs.SectionKind = 0x15
	Nested  ffs.SectionKind = 0x17
)

func padded(b []byte, to int, fill byte) []byte {
	for len(b)%to != 0 {
		b = append(b, fill)
	}
	return b
}

// Wide is a text in UTF-16LE with its NUL.
func Wide(text string) (b []byte) {
	for _, c := range utf16.Encode([]rune(text + "\x00")) {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return b
}

// Section makes a section of a file.
func Section(kind ffs.SectionKind, data []byte) []byte {
	size := 4 + len(data)
	return padded(append([]byte{byte(size), byte(size >> 8), byte(size >> 16), byte(kind)}, data...), 4, 0)
}

// Packed makes a section whose data are packed as a GUID says.
func Packed(id guid.GUID, data []byte) []byte {
	return Section(GUIDed, append(append(id[:], 24, 0, 1, 0), data...))
}

// LZMA packs data.
func LZMA(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := lzma.WriterConfig{SizeInHeader: true, Size: int64(len(data)), DictCap: 1 << 20}.NewWriter(&b)
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// File makes a file of a volume.
func File(id guid.GUID, kind ffs.FileType, sections ...[]byte) []byte {
	body := bytes.Join(sections, nil)
	size := 24 + len(body)
	b := append(id[:], 0, 0, byte(kind), 0, byte(size), byte(size>>8), byte(size>>16), 0xf8)
	return padded(append(b, body...), 8, 0xff)
}

// Module makes a driver's file with its name and code.
func Module(id guid.GUID, name string, code []byte) []byte {
	return File(id, 0x07, Section(ffs.SectionPE, code), Section(Name, Wide(name)))
}

const volumeHeader = 72

// Volume makes a volume. name may be nil.
func Volume(system guid.GUID, name *guid.GUID, files ...[]byte) []byte {
	b := make([]byte, volumeHeader)
	copy(b[16:], system[:])
	copy(b[40:], "_FVH")
	binary.LittleEndian.PutUint16(b[48:], volumeHeader)
	if name != nil {
		binary.LittleEndian.PutUint16(b[52:], volumeHeader)
		b = padded(append(append(b, name[:]...), 20, 0, 0, 0), 8, 0xff)
	}
	b = append(b, bytes.Join(files, nil)...)
	b = append(b, bytes.Repeat([]byte{0xff}, 64)...)
	binary.LittleEndian.PutUint64(b[32:], uint64(len(b)))
	var sum uint16
	for i := 0; i < volumeHeader; i += 2 {
		sum += binary.LittleEndian.Uint16(b[i:])
	}
	binary.LittleEndian.PutUint16(b[50:], -sum)
	return b
}

// Build is firmware that measures into a TPM as edk2 of 2026 does.
type Build struct {
	Version    string
	SecureBoot bool   // it has the code for it
	Driver     string // code of one of its drivers, which differs between builds
}

// Measuring makes an image of 256 KiB with its variables, with modules of the names and GUIDs that
// edk2's have, and a reset vector.
func Measuring(t testing.TB, build Build) []byte {
	t.Helper()
	id := guid.MustParse
	dxe := id("7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1")
	pei := id("6938079b-b503-4e3d-9d24-b28337a25806")
	early := Volume(GUIDFFS2, &pei, File(id("a0c98b77-cba5-4bb8-993b-4af6ce33ece4"), 0x06,
		Section(ffs.SectionPE, append([]byte("MZ"), Wide(build.Version)...)), Section(Name, Wide("Tcg2Pei"))))
	drivers := [][]byte{
		Module(id("fdff263d-5f68-4591-87ba-b768f445a9af"), "Tcg2Dxe", []byte("MZ")),
		Module(id("6d33944a-ec75-4855-a54d-809c75241f6c"), "BdsDxe",
			append(append([]byte("MZ"), Wide("EFI Firmware Setup")...), "initrd=initrd \x00"...)),
		Module(id("462caa21-7614-4503-836e-8ab6f4662331"), "UiApp", []byte("MZ")),
		Module(id("11111111-2222-3333-4444-555555555555"), "Driver", []byte("MZ"+build.Driver)),
	}
	if build.SecureBoot {
		drivers = append(
			drivers,
			Module(id("f0e6a44f-7195-41c3-ac64-54f202cd0a21"), "SecureBootConfigDxe", []byte("MZ")),
		)
	}
	inside := append(Section(Nested, early), Section(Nested, Volume(GUIDFFS2, &dxe, drivers...))...)
	main := Volume(GUIDFFS2, nil, File(id("9e21fd93-9c72-4c15-8c4b-e77f1db2d792"), ffs.FileVolume,
		Packed(ffs.GUIDLZMA, LZMA(t, inside))))
	image := bytes.Repeat([]byte{0xff}, 256<<10)
	copy(image, store())
	copy(image[64<<10:], main)
	copy(image[len(image)-16:], "\x90\x90\xe9\x00\x00")
	return image
}

// store is a volume with an empty store of variables (edk2, VariableFormat.h).
func store() []byte {
	id := guid.MustParse("aaf32c78-947b-439a-a180-2e144ec37792")
	b := binary.LittleEndian.AppendUint32(id[:], 28+64)
	return Volume(GUIDVariables, nil, append(b, 0x5a, 0xfe, 0, 0, 0, 0, 0, 0), bytes.Repeat([]byte{0xff}, 64))
}
