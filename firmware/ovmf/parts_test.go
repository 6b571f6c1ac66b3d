package ovmf_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/ffs"
	"github.com/vmlatch/vmlatch/firmware/guid"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/ovmf/ovmftest"
)

// find returns where a pattern stands in an image.
func find(t *testing.T, b []byte, pattern string) int {
	t.Helper()
	i := bytes.Index(b, []byte(pattern))
	if i < 0 {
		t.Fatalf("no %q in the image", pattern)
	}
	return i
}

// TestMetadataRefused edits the metadata of an image that is whole.
func TestMetadataRefused(t *testing.T) {
	put := func(off int, v uint32) func(b []byte, at int) {
		return func(b []byte, at int) { binary.LittleEndian.PutUint32(b[at+off:], v) }
	}
	for name, c := range map[string]struct {
		sev, tdx func(b []byte, at int)
		say      string
	}{
		"version":           {put(8, 2), put(8, 2), "version 2, must be 1"},
		"length too short":  {put(4, 16+7*12-1), put(4, 16+6*32-1), "sections do not fit"},
		"length of no item": {put(4, 15), put(4, 15), "sections do not fit"},
		"length too long":   {put(4, 1<<20), put(4, 1<<20), "sections do not fit"},
		"count":             {put(12, 257), put(12, 257), "257 sections do not fit"},
		"count that wraps":  {put(12, 1<<31), put(12, 1<<31), "sections do not fit"},
		"signature":         {put(0, 1), put(0, 1), "signature is"},
		"section":           {put(16+4, 1<<32-1), put(16+4, 1<<20), "section 0 leaves"},
		"last section":      {put(16+6*12, 1<<32-1), put(16+5*32+12, 1<<32-1), ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := ovmftest.AmdSev()
			c.sev(b, find(t, b, "ASEV"))
			c.tdx(b, find(t, b, "TDVF"))
			img, err := ovmf.Parse(b)
			if err != nil {
				t.Fatal(err)
			}
			_, sevErr := img.SEVMetadata()
			_, tdxErr := img.TDXMetadata()
			if c.say == "" { // a section up to 2^64 is allowed to the byte
				if !errors.Is(sevErr, ovmf.ErrFormat) || tdxErr != nil {
					t.Errorf("SEV %v, TDX %v, want ErrFormat and nil", sevErr, tdxErr)
				}
				return
			}
			for which, err := range map[string]error{"SEV": sevErr, "TDX": tdxErr} {
				if !errors.Is(err, ovmf.ErrFormat) || !strings.Contains(err.Error(), c.say) {
					t.Errorf("%s: %v, want ErrFormat with %q", which, err, c.say)
				}
			}
		})
	}
	most := make([]ovmf.Section, 256)
	for n, ok := range map[int]bool{256: true, 257: false} {
		img, err := ovmf.Parse(ovmftest.Image(ovmftest.SEVMetadata(append(most, most...)[:n]...)))
		if err != nil {
			t.Fatal(err)
		}
		if s, err := img.SEVMetadata(); (err == nil) != ok || ok && len(s) != n {
			t.Errorf("%d sections: %d, %v, want them taken: %t", n, len(s), err, ok)
		}
	}
	// An address and a size that wrap around.
	img, err := ovmf.Parse(ovmftest.Image(ovmftest.TDXMetadata(ovmf.TDXSection{GPA: 1<<64 - 1, Size: 2})))
	if err != nil {
		t.Fatal(err)
	}
	if s, err := img.TDXMetadata(); !errors.Is(err, ovmf.ErrFormat) {
		t.Errorf("a section that wraps around: %+v, %v, want ErrFormat", s, err)
	}
}

// TestBounds: what just fits is taken, one byte more is not.
func TestBounds(t *testing.T) {
	hash := func(base, size uint32) error {
		img, err := ovmf.Parse(ovmftest.Image(ovmftest.HashArea(base, size)))
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = img.HashArea()
		return err
	}
	if err := hash(1<<32-16, 16); err != nil {
		t.Errorf("an area up to 4 GiB: %v, want nil", err)
	}
	if err := hash(1<<32-16, 17); !errors.Is(err, ovmf.ErrFormat) {
		t.Errorf("an area beyond 4 GiB: %v, want ErrFormat", err)
	}
	for data, ok := range map[string]bool{"": false, "123": false, "1234": true, "12345": false} {
		img, err := ovmf.Parse(ovmftest.Image(ovmftest.Entry(ovmf.GUIDResetBlock, []byte(data)...)))
		if err != nil {
			t.Fatal(err)
		}
		eip, found, err := img.ResetEIP()
		if (err == nil) != ok || found != ok || ok && eip != 0x34333231 {
			t.Errorf("reset block of %d bytes: %#x, %t, %v, want it taken: %t", len(data), eip, found, err, ok)
		}
	}
	for _, n := range []int{3, 5} {
		img, err := ovmf.Parse(ovmftest.Image(ovmftest.Entry(ovmf.GUIDSEVMetadata, make([]byte, n)...)))
		if err != nil {
			t.Fatal(err)
		}
		if s, err := img.SEVMetadata(); !errors.Is(err, ovmf.ErrFormat) {
			t.Errorf("an offset of %d bytes: %v, %v, want ErrFormat", n, s, err)
		}
	}
	pointing := func(back uint32) error {
		b := ovmftest.Image(ovmftest.Size(4096), ovmftest.Fill(func(b []byte) { copy(b, "ASEV") }),
			ovmftest.Entry(ovmf.GUIDSEVMetadata, binary.LittleEndian.AppendUint32(nil, back)...))
		img, err := ovmf.Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		_, err = img.SEVMetadata()
		return err
	}
	if err := pointing(4096); err == nil || !strings.Contains(err.Error(), "version 0") {
		t.Errorf("metadata at the image's beginning: %v, want its version refused", err)
	}
	for _, back := range []uint32{0, 15, 4097} {
		if err := pointing(back); err == nil || !strings.Contains(err.Error(), "leaves the image") {
			t.Errorf("metadata %d bytes from the end: %v, want it to leave the image", back, err)
		}
	}
	for n, ok := range map[int]bool{0: false, 1: true, 49: true, 50: true, 64 << 20: true, 64<<20 + 1: false} {
		if _, err := ovmf.Parse(make([]byte, n)); (err == nil) != ok {
			t.Errorf("an image of %d bytes: %v, want it taken: %t", n, err, ok)
		}
	}
}

// TestTableRefused: lengths in the GUIDed table that do not add up.
func TestTableRefused(t *testing.T) {
	whole := ovmftest.Image(ovmftest.Size(4096), ovmftest.ResetBlock(7))
	total := len(whole) - 32 - 18 // where the table's length stands
	first := total - 18           // and the entry's
	edit := func(at int, v uint16) error {
		b := bytes.Clone(whole)
		binary.LittleEndian.PutUint16(b[at:], v)
		_, err := ovmf.Parse(b)
		return err
	}
	for _, c := range []struct {
		at  int
		v   uint16
		say string
	}{
		{total, 17, "length 17 does not fit"},
		{total, 4096 - 31, "length 4065 does not fit"},
		{total, 18 + 17, "17 bytes before the first entry"},
		{total, 18 + 21, "length 22 leaves the table"},
		{first, 17, "length 17 leaves the table"},
		{first, 23, "length 23 leaves the table"},
		{first, 18, "4 bytes before the first entry"},
	} {
		if err := edit(c.at, c.v); !errors.Is(err, ovmf.ErrFormat) || !strings.Contains(err.Error(), c.say) {
			t.Errorf("length %d at %d: %v, want ErrFormat with %q", c.v, c.at-len(whole), err, c.say)
		}
	}
	if err := edit(total, 18); err != nil {
		t.Errorf("a table without entries: %v, want nil", err)
	}
	img, err := ovmf.Parse(whole)
	if err != nil || len(img.Entries) != 1 || img.Entries[0].GUID != ovmf.GUIDResetBlock {
		t.Errorf("entries %+v, %v, want the reset block", img, err)
	}
}

func TestVolumes(t *testing.T) {
	const at, size = 0x1000, 0x2000
	whole := ovmftest.Image(ovmftest.Volume(at, size), ovmftest.Volume(at+size, 0x800))
	volumes := func(edit func(header []byte)) []ffs.Place {
		b := bytes.Clone(whole)
		edit(b[at:])
		img, err := ovmf.Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		return img.Volumes()
	}
	got := volumes(func([]byte) {})
	if len(got) != 2 || got[0].Offset != at || got[0].Size != size || got[0].Kind() != "FFS2" ||
		got[1].Offset != at+size {
		t.Fatalf("volumes %+v, want FFS2 at %#x+%#x and one behind it", got, at, size)
	}
	// mend makes the header's sum 0 again, so that nothing but the edit is wrong.
	mend := func(b []byte, header int) {
		sum := uint16(0)
		clear(b[50:52])
		for i := 0; i < header; i += 2 {
			sum += binary.LittleEndian.Uint16(b[i:])
		}
		binary.LittleEndian.PutUint16(b[50:], -sum)
	}
	le := binary.LittleEndian
	for name, edit := range map[string]func([]byte){
		"signature": func(b []byte) { b[40] = 'x'; mend(b, 56) },
		"checksum":  func(b []byte) { b[50] ^= 1 },
		"too long":  func(b []byte) { le.PutUint64(b[32:], ovmftest.DefaultSize-at+1); mend(b, 56) },
		"too short": func(b []byte) { le.PutUint64(b[32:], 55); mend(b, 56) },
		"header":    func(b []byte) { le.PutUint16(b[48:], 54); mend(b, 54) },
		"odd":       func(b []byte) { le.PutUint16(b[48:], 57); mend(b, 56) },
		"long":      func(b []byte) { le.PutUint16(b[48:], size+2); mend(b, size+2) },
	} {
		if got := volumes(edit); len(got) != 1 || got[0].Offset != at+size {
			t.Errorf("%s: volumes %+v, want the second alone", name, got)
		}
	}
	for name, edit := range map[string]func([]byte){
		"up to the end":   func(b []byte) { le.PutUint64(b[32:], ovmftest.DefaultSize-at); mend(b, 56) },
		"header alone":    func(b []byte) { le.PutUint64(b[32:], 56); mend(b, 56) },
		"a longer header": func(b []byte) { le.PutUint16(b[48:], size); mend(b, size) },
	} {
		if got := volumes(edit); len(got) == 0 || got[0].Offset != at {
			t.Errorf("%s: volumes %+v, want the first", name, got)
		}
	}
	// A volume in the last bytes where a header fits.
	b := ovmftest.Image(ovmftest.Size(4096), ovmftest.Volume(4096-56, 56))
	if img, err := ovmf.Parse(b); err != nil || len(img.Volumes()) != 1 {
		t.Errorf("%v, a volume at the very end: want it found", err)
	}
	other := ffs.Place{FileSystem: guid.MustParse("12345678-0000-0000-0000-000000000000")}
	if got, want := other.Kind(), other.FileSystem.String(); got != want {
		t.Errorf("kind %q, want %q", got, want)
	}
}

func TestNames(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{ovmf.Entry{GUID: ovmf.GUIDHashTable}.Name(), "kernel hash area"},
		{ovmf.Entry{GUID: ovmf.GUIDIGVMParameters}.Name(), "IGVM parameter metadata"},
		{
			ovmf.Entry{GUID: ovmf.GUIDHashTable, Data: []byte{0, 0xc, 0x81, 0, 0, 4, 0, 0}}.Text(),
			"0x810c00, 0x400 bytes",
		},
		{ovmf.Entry{GUID: ovmf.GUIDSecretArea, Data: make([]byte, 8)}.Text(), "none"},
		{ovmf.Entry{GUID: ovmf.GUIDSecretArea, Data: make([]byte, 3)}.Text(), "000000"},
		{ovmf.Entry{GUID: ovmf.GUIDResetBlock, Data: []byte{4, 0xb0, 0x80, 0}}.Text(), "EIP 0x80b004"},
		{ovmf.Entry{GUID: ovmf.GUIDTDXMetadata, Data: []byte{0x60, 0xa, 0, 0}}.Text(), "0xa60 from the end"},
		{ovmf.Entry{Data: []byte{1, 2}}.Text(), "0102"},
		{ovmf.Entry{}.Name(), "00000000-0000-0000-0000-000000000000"},
		{ovmf.SectionKernelHashes.String(), "kernel hashes"},
		{ovmf.SectionType(0x77).String(), "type 0x77"},
		{ovmf.TDXSection{Type: 0}.TypeName(), "BFV"},
		{ovmf.TDXSection{Type: 6}.TypeName(), "payload parameter"},
		{ovmf.TDXSection{Type: 7}.TypeName(), "type 7"},
		{(&ovmf.Error{Part: "p", Msg: "m"}).Error(), "firmware image: p: m"},
	} {
		if c.got != c.want {
			t.Errorf("name %q, want %q", c.got, c.want)
		}
	}
	img := &ovmf.Image{Bytes: []byte("0123456789abcdefghij")}
	if got := string(img.ResetVector()); got != "456789abcdefghij" {
		t.Errorf("reset vector %q, want the last 16 bytes", got)
	}
	img.Bytes = img.Bytes[:3]
	if got := string(img.ResetVector()); got != "012" {
		t.Errorf("reset vector %q of 3 bytes, want them all", got)
	}
}

func TestReadFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := ovmf.ReadFile(file); err != nil || string(b) != "content" {
		t.Errorf("%q, %v, want the content", b, err)
	}
	seen := ""
	if err := ovmf.WithFile(file, func(b []byte) error { seen = string(b); return nil }); err != nil ||
		seen != "content" {
		t.Errorf("%q, %v, want the content", seen, err)
	}
	refused := errors.New("refused")
	if err := ovmf.WithFile(file, func([]byte) error { return refused }); !errors.Is(err, refused) {
		t.Errorf("error %v, want the function's own", err)
	}
	if ovmf.IsShortened(nil) || ovmf.IsShortened("panic") {
		t.Error("an ordinary panic counts as a file that became shorter")
	}
}

func TestDescriptorKinds(t *testing.T) {
	const targets = `,"targets":[{"architecture":"x86_64","machines":["pc-q35-*","pc-i440fx-*"]}],"features":["a","b"]}`
	for text, want := range map[string]struct {
		use, bad    bool
		image, vars string
	}{
		`{"mapping":{"device":"memory","filename":"m"}` + targets: {
			use:   true,
			image: "m",
		},
		`{"mapping":{"device":"memory"}` + targets: {
			bad: true,
		},
		`{"mapping":{"device":"flash","executable":{"filename":"c","format":"raw"}}` + targets: {
			use:   true,
			image: "c",
		},
		`{"mapping":{"device":"flash","executable":{"filename":"c"}}` + targets: {
			use:   true,
			image: "c",
		},
		`{"mapping":{"device":"flash","executable":{"filename":"c","format":"qcow2"}}` + targets: {},
		`{"mapping":{"device":"kernel","filename":"k"}` + targets:                                {},
		`{"mapping":{"device":"flash","executable":{"filename":"c"},"nvram-template":{"filename":"v"}}` + targets: {
			use:   true,
			image: "c",
			vars:  "v",
		},
		`[`: {bad: true},
	} {
		d, use, err := ovmf.ParseDescriptor("f.json", []byte(text))
		if use != want.use || (err != nil) != want.bad || use && (d.Image != want.image || d.VarsImage != want.vars) {
			t.Errorf("%s: %+v, %t, %v, want %+v", text, d, use, err, want)
		}
		if !use {
			continue
		}
		for _, c := range []struct {
			arch, machine string
			features      []string
			want          bool
		}{
			{"x86_64", "q35", nil, true},
			{"x86_64", "q35", []string{"b", "a"}, true},
			{"x86_64", "q35", []string{"a", "c"}, false},
			{"x86_64", "pc-q35-7.2", nil, true},
			{"x86_64", "microvm", nil, false},
			{"aarch64", "q35", nil, false},
		} {
			if got := d.Fits(c.arch, c.machine, c.features...); got != c.want {
				t.Errorf("fits %+v: %t, want %t", c, got, c.want)
			}
		}
	}
}

func TestDescriptorFiles(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", "/home/x/.config")
	want := []string{"/home/x/.config/qemu/firmware", "/etc/qemu/firmware", "/usr/share/qemu/firmware"}
	if got := ovmf.DescriptorDirs(); !slices.Equal(got, want) {
		t.Errorf("directories %v, want %v", got, want)
	}
	dir := t.TempDir()
	const good = `{"mapping":{"device":"memory","filename":"m"}}`
	for name, text := range map[string]string{
		"1.json": good, "2.txt": good, "3.json": strings.Repeat(" ", 1<<20-len(good)) + good,
		"4.json": strings.Repeat(" ", 1<<20+1-len(good)) + good,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "5.json")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "6.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	found, err := ovmf.FindDescriptors(dir)
	if len(found) != 2 || found[0].Path != filepath.Join(dir, "1.json") ||
		found[1].Path != filepath.Join(dir, "3.json") {
		t.Errorf("found %+v, want 1.json and 3.json", found)
	}
	for _, name := range []string{"4.json: over 1048576 bytes", "5.json", "6.json"} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v, want %s in it", err, name)
		}
	}
	if _, err := ovmf.FindDescriptors(filepath.Join(dir, "1.json")); err == nil {
		t.Error("a file is read as a directory, want an error")
	}
}
