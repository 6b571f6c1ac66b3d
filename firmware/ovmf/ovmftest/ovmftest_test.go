package ovmftest_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/ovmf/ovmftest"
)

func parse(t *testing.T, image []byte) *ovmf.Image {
	t.Helper()
	img, err := ovmf.Parse(image)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// TestTables: what is put into an image is what the parser reads from it.
func TestTables(t *testing.T) {
	sections := []ovmf.Section{
		{GPA: 0x1000, Size: 0x2000, Type: ovmf.SectionMemory},
		{GPA: 0x4000, Size: 0x1000, Type: ovmf.SectionCPUID},
	}
	td := []ovmf.TDXSection{{FileOffset: 1, FileSize: 2, GPA: 0xfffff000, Size: 0x1000, Type: 1, Attributes: 1}}
	img := parse(t, ovmftest.Image(
		ovmftest.Size(4096), ovmftest.SEVMetadata(sections...), ovmftest.HashArea(0x1234, 0x400),
		ovmftest.TDXMetadata(td...), ovmftest.SecretArea(0x5678, 0xc00), ovmftest.ResetBlock(0x80b004),
	))
	if got := len(img.Entries); got != 5 {
		t.Errorf("%d entries, want 5", got)
	}
	if a, ok, err := img.HashArea(); !ok || err != nil || a != (ovmf.Area{Base: 0x1234, Size: 0x400}) {
		t.Errorf("hash area %+v, %t, %v, want 0x1234+0x400", a, ok, err)
	}
	if a, ok, err := img.SecretArea(); !ok || err != nil || a != (ovmf.Area{Base: 0x5678, Size: 0xc00}) {
		t.Errorf("secret area %+v, %t, %v, want 0x5678+0xc00", a, ok, err)
	}
	if eip, ok, err := img.ResetEIP(); !ok || err != nil || eip != 0x80b004 {
		t.Errorf("reset EIP %#x, %t, %v, want 0x80b004", eip, ok, err)
	}
	if got, err := img.SEVMetadata(); err != nil || !slices.Equal(got, sections) {
		t.Errorf("SEV metadata %+v, %v, want %+v", got, err, sections)
	}
	if got, err := img.TDXMetadata(); err != nil || !slices.Equal(got, td) {
		t.Errorf("TDX metadata %+v, %v, want %+v", got, err, td)
	}
}

func TestBuilds(t *testing.T) {
	for name, c := range map[string]struct {
		build    func(...ovmftest.Option) []byte
		holds    bool // kernel hashes and secrets
		sections int
	}{
		"AmdSev":  {ovmftest.AmdSev, true, 7},
		"Generic": {ovmftest.Generic, false, 5},
	} {
		t.Run(name, func(t *testing.T) {
			for _, size := range []int{ovmftest.DefaultSize, 2 << 20} {
				b := c.build(ovmftest.Size(size))
				img := parse(t, b)
				if len(b) != size {
					t.Errorf("%d bytes, want %d", len(b), size)
				}
				hash, _, _ := img.HashArea()
				secret, _, _ := img.SecretArea()
				if hash.Size != 0 != c.holds || secret.Size != 0 != c.holds {
					t.Errorf("hash area %+v, secret area %+v, want them of some size: %t", hash, secret, c.holds)
				}
				if s, err := img.SEVMetadata(); err != nil || len(s) != c.sections {
					t.Errorf("%d SEV sections, %v, want %d", len(s), err, c.sections)
				}
				if s, err := img.TDXMetadata(); err != nil || len(s) != 6 || s[0].GPA+s[0].Size != 1<<32 {
					t.Errorf("TDX sections %+v, %v, want 6, of which the first ends at 4 GiB", s, err)
				}
				if v := img.Volumes(); len(v) != 2 || v[0].Kind() != "variables" || v[1].Offset+v[1].Size != size {
					t.Errorf("volumes %+v, want variables and the rest", v)
				}
			}
		})
	}
}

// TestMalformed: an entry of a wrong length is written as it is told.
func TestMalformed(t *testing.T) {
	img := parse(t, ovmftest.Image(ovmftest.Entry(ovmf.GUIDHashTable, 1, 2, 3)))
	if _, _, err := img.HashArea(); !errors.Is(err, ovmf.ErrFormat) {
		t.Errorf("hash area of 3 bytes: %v, want ErrFormat", err)
	}
	if img := parse(t, ovmftest.Image()); len(img.Entries) != 0 {
		t.Errorf("an image without options has %d entries, want 0", len(img.Entries))
	}
	defer func() {
		if recover() == nil {
			t.Error("an image too small for its tables is made, want a panic")
		}
	}()
	ovmftest.AmdSev(ovmftest.Size(256))
}
