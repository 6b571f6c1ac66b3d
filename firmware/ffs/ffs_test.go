package ffs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/ffs"
	"github.com/vmlatch/vmlatch/firmware/ffs/ffstest"
	"github.com/vmlatch/vmlatch/firmware/guid"
)

var (
	first = guid.MustParse("11111111-2222-3333-4444-555555555555")
	inner = guid.MustParse("66666666-7777-8888-9999-aaaaaaaaaaaa")
)

// sample is an image with a volume that is packed inside another.
func sample(t testing.TB) []byte {
	driver := ffstest.File(inner, 0x07, ffstest.Section(ffs.SectionPE, []byte("MZ code")),
		ffstest.Section(ffstest.Name, ffstest.Wide("Driver")),
		ffstest.Section(ffstest.Version, append([]byte{1, 0}, ffstest.Wide("1.2 ä")...)))
	dxe := ffstest.Volume(ffstest.GUIDFFS3, &inner, ffstest.File(inner, ffs.FilePad, make([]byte, 40)), driver)
	holder := ffstest.File(first, ffs.FileVolume,
		ffstest.Packed(ffs.GUIDLZMA, ffstest.LZMA(t, ffstest.Section(ffstest.Nested, dxe))))
	core := ffstest.File(inner, 0x03, ffstest.Section(ffs.SectionTE, []byte("VZ")))
	return append(make([]byte, 64), ffstest.Volume(ffstest.GUIDFFS2, nil, holder, core)...)
}

func TestRead(t *testing.T) {
	list := ffs.Read(sample(t))
	if len(list) != 1 || list[0].Damage != nil || list[0].Offset != 64 || len(ffs.All(list)) != 2 {
		t.Fatalf("%+v", list)
	}
	var seen []string
	for path, f := range ffs.Files(list) {
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
	if code := dxe.Files[1].Leaf(ffs.SectionPE); string(code) != "MZ code" {
		t.Errorf("its driver is %q", code)
	}
	if p := list[0].Files[0].Sections[0].Packing; p != "LZMA" {
		t.Errorf("it is packed by %q", p)
	}
	for range ffs.Files(list) {
		break // stops the walk
	}
}

// TestDamaged: what does not fit is said, and what comes before it is there all the same.
func TestDamaged(t *testing.T) {
	const maxUnpacked, maxWindow, maxNested = 256 << 20, 64 << 20, 8
	module := func(sections ...[]byte) []byte { return ffstest.File(inner, 0x07, sections...) }
	code := ffstest.Section(ffs.SectionPE, []byte("x"))
	long := module(code)
	long[21] = 0xff
	bomb := ffstest.LZMA(t, make([]byte, 1<<20))
	binary.LittleEndian.PutUint64(bomb[5:], maxUnpacked+1)
	window := ffstest.LZMA(t, []byte("x"))
	binary.LittleEndian.PutUint32(window[1:], maxWindow+1)
	deep := module(code)
	for range maxNested + 2 {
		deep = ffstest.File(
			first,
			ffs.FileVolume,
			ffstest.Section(ffstest.Nested, ffstest.Volume(ffstest.GUIDFFS2, nil, deep)),
		)
	}
	many := module(bytes.Repeat(ffstest.Packed(ffs.GUIDLZMA, ffstest.LZMA(t, nil)), 65))
	good := ffstest.File(first, 0x07, ffstest.Section(ffstest.Name, ffstest.Wide("good")))
	for what, bad := range map[string][]byte{
		"a file that is too long":    long,
		"a section that is too long": module([]byte{0xff, 0xff, 0, byte(ffs.SectionPE)}),
		"a short GUIDed section":     module(ffstest.Section(ffstest.GUIDed, []byte("x"))),
		"data outside":               module(ffstest.Packed(ffs.GUIDLZMA, nil)[:8]),
		"LZMA that is cut off":       module(ffstest.Packed(ffs.GUIDLZMA, ffstest.LZMA(t, []byte("text"))[:15])),
		"LZMA that is too much":      module(ffstest.Packed(ffs.GUIDLZMA, bomb)),
		"LZMA with a great window":   module(ffstest.Packed(ffs.GUIDLZMA, window)),
		"LZMA many times":            many,
		"volumes in volumes":         deep,
	} {
		list := ffs.Read(ffstest.Volume(ffstest.GUIDFFS2, nil, good, bad))
		var damage error
		for _, v := range ffs.All(list) {
			damage = errors.Join(damage, v.Damage)
		}
		if !errors.Is(damage, ffs.ErrFormat) {
			t.Errorf("%s: %v, want ErrFormat", what, damage)
		}
		if len(list) != 1 || len(list[0].Files) == 0 || list[0].Files[0].Name != "good" {
			t.Errorf("%s: the file before it is lost", what)
		}
	}
	unknown := ffs.Read(ffstest.Volume(ffstest.GUIDFFS2, nil, module(ffstest.Packed(first, []byte("x")))))
	if s := unknown[0].Files[0].Sections[0]; s.Opaque == "" || unknown[0].Damage != nil {
		t.Errorf("a packing that is not known: %+v", s)
	}
}

func TestFind(t *testing.T) {
	if v := ffs.Find(ffstest.Measuring(t, ffstest.Build{Version: "1.0"})); len(v) != 2 || v[0].Kind() != "variables" {
		t.Errorf("%+v", v)
	}
	b := ffstest.Volume(ffstest.GUIDFFS2, nil)
	b[51] ^= 1
	if v := ffs.Find(b); len(v) != 0 {
		t.Errorf("a volume whose checksum is wrong: %+v", v)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(sample(f))
	f.Fuzz(func(_ *testing.T, b []byte) {
		for _, v := range ffs.All(ffs.Read(b)) {
			_ = v.Kind()
		}
	})
}
