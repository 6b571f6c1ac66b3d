package ovmf_test

import (
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/ovmf/ovmftest"
)

// TestAcceptsSNP: metadata that parses and that QEMU refuses, each with its reason.
func TestAcceptsSNP(t *testing.T) {
	mem := func(gpa, size uint32) ovmf.Section {
		return ovmf.Section{GPA: gpa, Size: size, Type: ovmf.SectionMemory}
	}
	for name, c := range map[string]struct {
		sections []ovmf.Section
		want     string
	}{
		"none":        {nil, ""},
		"pages":       {[]ovmf.Section{mem(0x2000, 0x1000), mem(0x1000, 0x1000)}, ""},
		"hashes":      {[]ovmf.Section{{GPA: 0x1000, Size: 0x1000, Type: ovmf.SectionKernelHashes}}, ""},
		"placeholder": {[]ovmf.Section{mem(0x1000, 0x1000), {Type: ovmf.SectionSVSMCAA}}, "placeholder"},
		"unknown":     {[]ovmf.Section{{GPA: 0x1000, Size: 0x1000, Type: 7}}, "unknown type 0x7"},
		"type 0":      {[]ovmf.Section{{GPA: 0x1000, Size: 0x1000}}, "unknown type 0x0"},
		"size":        {[]ovmf.Section{mem(0x1000, 0x800)}, "not made of pages"},
		"address":     {[]ovmf.Section{mem(0x1800, 0x1000)}, "not made of pages"},
		"adjacent":    {[]ovmf.Section{mem(0x3000, 0x1000), mem(0x1000, 0x2000)}, ""},
		"overlap by 1": {[]ovmf.Section{mem(0x2000, 0x1000), mem(0x1000, 0x2000)}, "sections 0 and 1 of its SEV" +
			" metadata overlap"},
		"equal": {[]ovmf.Section{mem(0x2000, 0x1000), mem(0x2000, 0x1000)}, "overlap"},
	} {
		if got := ovmf.AcceptsSNP(c.sections); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestAcceptsTDX(t *testing.T) {
	code := ovmf.TDXSection{FileSize: 0x1000, GPA: 0xfff00000, Size: 0x1000, Type: ovmf.TDXSectionBFV, Attributes: 1}
	hob := ovmf.TDXSection{GPA: 0x809000, Size: 0x2000, Type: ovmf.TDXSectionTDHOB}
	temp := ovmf.TDXSection{GPA: 0x810000, Size: 0x1000, Type: ovmf.TDXSectionTempMem}
	edit := func(s ovmf.TDXSection, f func(*ovmf.TDXSection)) ovmf.TDXSection { f(&s); return s }
	for name, c := range map[string]struct {
		sections []ovmf.TDXSection
		want     string
	}{
		"good":   {[]ovmf.TDXSection{code, hob, temp}, ""},
		"none":   {nil, "no TDX metadata"},
		"no HOB": {[]ovmf.TDXSection{code, temp}, "0 sections for a TD HOB"},
		"2 HOBs": {
			[]ovmf.TDXSection{hob, edit(hob, func(s *ovmf.TDXSection) { s.GPA = 0x1000 })},
			"2 sections for a TD HOB",
		},
		"type 4": {[]ovmf.TDXSection{hob, edit(temp, func(s *ovmf.TDXSection) { s.Type = 4 })}, "has type 4, which" +
			" QEMU does not"},
		"no data": {[]ovmf.TDXSection{hob, edit(code, func(s *ovmf.TDXSection) { s.FileSize = 0 })}, "has no data"},
		"data": {
			[]ovmf.TDXSection{hob, edit(temp, func(s *ovmf.TDXSection) { s.FileSize = 0x1000 })},
			"0x1000 bytes of data",
		},
		"room": {
			[]ovmf.TDXSection{hob, edit(code, func(s *ovmf.TDXSection) { s.FileSize = 0x2000 })},
			"more data in the file",
		},
		"pages": {
			[]ovmf.TDXSection{hob, edit(temp, func(s *ovmf.TDXSection) { s.Size = 0x800 })},
			"not made of pages",
		},
		"empty":   {[]ovmf.TDXSection{hob, edit(temp, func(s *ovmf.TDXSection) { s.Size = 0 })}, "not made of pages"},
		"overlap": {[]ovmf.TDXSection{hob, edit(temp, func(s *ovmf.TDXSection) { s.GPA = 0x80a000 })}, "overlap"},
	} {
		options := []ovmftest.Option{ovmftest.Size(256 << 10)}
		if c.sections != nil {
			options = append(options, ovmftest.TDXMetadata(c.sections...))
		}
		img, err := ovmf.Parse(ovmftest.Image(options...))
		if err != nil {
			t.Fatal(err)
		}
		if got := img.AcceptsTDX(); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// TestLooks: files that can be no firmware.
func TestLooks(t *testing.T) {
	firmware := ovmftest.AmdSev(ovmftest.ResetVector())
	edk2 := ovmftest.AmdSev()
	copy(edk2[len(edk2)-16:], "\x0f\x20\xc0\xa8\x01\x74\x05\xe9\x0c\xff\xff\xff\xe9\xf1\xfe\x90")
	seabios := make([]byte, 64<<10)
	copy(seabios[len(seabios)-16:], "\xea\x5b\xe0\x00\xf0")
	for name, c := range map[string]struct {
		b    []byte
		want string
		sure bool
	}{
		"OVMF": {firmware, "", false}, "newer OVMF": {edk2, "", false}, "SeaBIOS": {seabios, "", false},
		"qcow2":         {append([]byte("QFI\xfb"), firmware...), "qemu-img convert -O raw", true},
		"ELF":           {append([]byte("\x7fELF"), firmware...), "ELF", true},
		"gzip":          {append([]byte("\x1f\x8b"), firmware...), "gzip", true},
		"an option ROM": {append([]byte("\x55\xaa"), firmware...), "option ROM", true},
		"a variable store": {
			append(firmware[:4096:4096], []byte(strings.Repeat("\xff", 4096))...),
			"no reset vector", false,
		},
		"half a page more": {append(make([]byte, 2048), firmware...), "only whole pages", false},
		"text":             {[]byte(strings.Repeat("text\n", 1000)), "no reset vector", false},
		"nothing":          {nil, "no reset vector", false},
	} {
		why, sure := ovmf.Looks(c.b)
		if (why == "") != (c.want == "") || !strings.Contains(why, c.want) || sure != c.sure {
			t.Errorf("%s: %q, sure %t, want %q, %t", name, why, sure, c.want, c.sure)
		}
	}
}
