package ffs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/ulikunitz/xz/lzma"

	"github.com/vmlatch/vmlatch/firmware/guid"
)

var (
	ffs2  = guid.MustParse("8c8ce578-8a3d-4f1c-9935-896185c32dd3")
	ffs3  = guid.MustParse("5473c07a-3dcb-4dca-bd6f-1e9689e7349a")
	first = guid.MustParse("11111111-2222-3333-4444-555555555555")
	inner = guid.MustParse("66666666-7777-8888-9999-aaaaaaaaaaaa")
)

func section(kind SectionKind, data []byte) []byte {
	size := sectionHeader + len(data)
	b := append([]byte{byte(size), byte(size >> 8), byte(size >> 16), byte(kind)}, data...)
	return append(b, make([]byte, align(len(b), 4)-len(b))...)
}

func wide(text string) (b []byte) {
	for _, c := range utf16.Encode([]rune(text + "\x00")) {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return b
}

func guided(id guid.GUID, data []byte) []byte {
	header := append(id[:], 24, 0, 1, 0)
	return section(sectionGUIDed, append(header, data...))
}

func packed(t testing.TB, data []byte) []byte {
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

func file(id guid.GUID, kind FileType, sections ...[]byte) []byte {
	body := bytes.Join(sections, nil)
	size := fileHeader + len(body)
	b := append(id[:], 0, 0, byte(kind), 0, byte(size), byte(size>>8), byte(size>>16), 0xf8)
	b = append(b, body...)
	return append(b, bytes.Repeat([]byte{0xff}, align(len(b), fileAlignment)-len(b))...)
}

func volume(system guid.GUID, name *guid.GUID, files ...[]byte) []byte {
	header := 72
	b := make([]byte, header)
	copy(b[16:], system[:])
	copy(b[40:], "_FVH")
	binary.LittleEndian.PutUint16(b[48:], uint16(header))
	if name != nil {
		binary.LittleEndian.PutUint16(b[52:], uint16(header))
		b = append(b, name[:]...)
		b = append(b, 20, 0, 0, 0)
		b = append(b, bytes.Repeat([]byte{0xff}, align(len(b), fileAlignment)-len(b))...)
	}
	b = append(b, bytes.Join(files, nil)...)
	b = append(b, bytes.Repeat([]byte{0xff}, 64)...)
	binary.LittleEndian.PutUint64(b[32:], uint64(len(b)))
	binary.LittleEndian.PutUint16(b[50:], -sum16(b[:header]))
	return b
}

// sample is an image with a volume that is packed inside another.
func sample(t testing.TB) []byte {
	driver := file(inner, 0x07, section(SectionPE, []byte("MZ code")), section(sectionName, wide("Driver")),
		section(sectionVersion, append([]byte{1, 0}, wide("1.2 ä")...)))
	dxe := volume(ffs3, &inner, file(inner, FilePad, make([]byte, 40)), driver)
	holder := file(first, FileVolume, guided(GUIDLZMA, packed(t, section(sectionVolume, dxe))))
	return append(make([]byte, 64), volume(ffs2, nil, holder, file(inner, 0x03, section(SectionTE, []byte("VZ"))))...)
}

func TestRead(t *testing.T) {
	list := Read(sample(t))
	if len(list) != 1 || list[0].Damage != nil || list[0].Offset != 64 || len(All(list)) != 2 {
		t.Fatalf("%+v", list)
	}
	var seen []string
	for path, f := range Files(list) {
		seen = append(seen, strings.Repeat(">", len(path))+f.Type.String()+" "+f.Name+" "+f.Version)
	}
	want := ">volume  |>>padding  |>>driver Driver 1.2 ä|>SEC core  "
	if got := strings.Join(seen, "|"); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	dxe := list[0].Files[0].Volumes()[0]
	if dxe.Name != inner || dxe.Kind() != "FFS3" {
		t.Errorf("the inner volume is %v %s", dxe.Name, dxe.Kind())
	}
	if code := dxe.Files[1].Leaf(SectionPE); string(code) != "MZ code" {
		t.Errorf("its driver is %q", code)
	}
	if p := list[0].Files[0].Sections[0].Packing; p != "LZMA" {
		t.Errorf("it is packed by %q", p)
	}
	for range Files(list) {
		break // stops the walk
	}
}

// TestDamaged: what does not fit is said, and what comes before it is there all the same.
func TestDamaged(t *testing.T) {
	long := file(inner, 0x07, section(SectionPE, []byte("x")))
	long[21] = 0xff
	bomb := packed(t, make([]byte, 1<<20))
	binary.LittleEndian.PutUint64(bomb[5:], maxUnpacked+1)
	window := packed(t, []byte("x"))
	binary.LittleEndian.PutUint32(window[1:], maxWindow+1)
	deep := file(first, 0x07, section(SectionPE, []byte("x")))
	for range maxNested + 2 {
		deep = file(first, FileVolume, section(sectionVolume, volume(ffs2, nil, deep)))
	}
	good := file(first, 0x07, section(sectionName, wide("good")))
	for what, bad := range map[string][]byte{
		"a file that is too long":    long,
		"a section that is too long": file(inner, 0x07, []byte{0xff, 0xff, 0, byte(SectionPE)}),
		"a short GUIDed section":     file(inner, 0x07, section(sectionGUIDed, []byte("x"))),
		"data outside":               file(inner, 0x07, guided(GUIDLZMA, nil)[:8]),
		"LZMA that is cut off":       file(inner, 0x07, guided(GUIDLZMA, packed(t, []byte("text"))[:15])),
		"LZMA that is too much":      file(inner, 0x07, guided(GUIDLZMA, bomb)),
		"LZMA with a great window":   file(inner, 0x07, guided(GUIDLZMA, window)),
		"volumes in volumes":         deep,
	} {
		list := Read(volume(ffs2, nil, good, bad))
		var damage error
		for _, v := range All(list) {
			damage = errors.Join(damage, v.Damage)
		}
		if !errors.Is(damage, ErrFormat) {
			t.Errorf("%s: %v, want ErrFormat", what, damage)
		}
		if len(list) != 1 || len(list[0].Files) == 0 || list[0].Files[0].Name != "good" {
			t.Errorf("%s: the file before it is lost", what)
		}
	}
	unknown := Read(volume(ffs2, nil, file(inner, 0x07, guided(first, []byte("x")))))
	if s := unknown[0].Files[0].Sections[0]; s.Opaque == "" || unknown[0].Damage != nil {
		t.Errorf("a packing that is not known: %+v", s)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(sample(f))
	f.Fuzz(func(_ *testing.T, b []byte) {
		for _, v := range All(Read(b)) {
			_ = v.Kind()
		}
	})
}
