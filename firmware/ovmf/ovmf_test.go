package ovmf_test

import (
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/internal/vectors"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/sev"
)

var entryNames = map[string]sev.GUID{
	"SevProcessorReset": ovmf.GUIDResetBlock, "SevSecretBlock": ovmf.GUIDSecretArea,
	"SevHashTableBlock": ovmf.GUIDHashTable, "OvmfSevMetadataOffset": ovmf.GUIDSEVMetadata,
	"TdxMetadataOffset": ovmf.GUIDTDXMetadata,
}

// TestMetadataVectors compares with virt-fw-dump: entries byte by byte, SEV and
// TDX sections address by address, in their order.
func TestMetadataVectors(t *testing.T) {
	vectors.Each(t, "fw-metadata", func(t *testing.T, v vectors.Vector) {
		var in struct{ Firmware string }
		v.In(t, &in)
		var want struct {
			Entries []struct {
				GUID, Data string
				Ranges     []struct{ GPA, Size string }
			}
		}
		v.Want(t, &want)
		img, err := ovmf.Parse(vectors.Facts(t, in.Firmware).Skeleton(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range want.Entries {
			guid, known := entryNames[w.GUID]
			if !known {
				continue
			}
			got, ok := img.Entry(guid)
			if !ok || hex.EncodeToString(got) != w.Data {
				t.Errorf("%s: %x, want %s", w.GUID, got, w.Data)
			}
			var ranges [][2]uint64
			switch guid {
			case ovmf.GUIDSEVMetadata:
				sections, err := img.SEVMetadata()
				if err != nil {
					t.Fatal(err)
				}
				for _, s := range sections {
					ranges = append(ranges, [2]uint64{uint64(s.GPA), uint64(s.Size)})
				}
			case ovmf.GUIDTDXMetadata:
				sections, err := img.TDXMetadata()
				if err != nil {
					t.Fatal(err)
				}
				for _, s := range sections {
					ranges = append(ranges, [2]uint64{s.GPA, s.Size})
				}
			default:
				continue
			}
			if len(ranges) != len(w.Ranges) {
				t.Fatalf("%s: %d sections, want %d", w.GUID, len(ranges), len(w.Ranges))
			}
			for i, r := range w.Ranges {
				gpa, _ := strconv.ParseUint(r.GPA, 0, 64)
				size, _ := strconv.ParseUint(r.Size, 0, 64)
				if ranges[i] != [2]uint64{gpa, size} {
					t.Errorf("%s: section %d is %#x, want %s+%s", w.GUID, i, ranges[i], r.GPA, r.Size)
				}
			}
		}
	})
}

func tinyImage(entries ...[]byte) []byte {
	body := []byte{}
	for _, e := range entries {
		body = append(body, e...)
	}
	b := append(make([]byte, 64), body...)
	n := len(body) + 18
	b = append(b, byte(n), byte(n>>8))
	guid := sev.MustGUID("96b582de-1fb2-45f7-baea-a366c55a082d")
	b = append(b, guid[:]...)
	return append(b, make([]byte, 32)...)
}

func entry(g sev.GUID, data []byte) []byte {
	n := len(data) + 18
	b := append([]byte{}, data...)
	b = append(b, byte(n), byte(n>>8))
	return append(b, g[:]...)
}

func TestHostileImages(t *testing.T) {
	area := func(d ...byte) []byte { return tinyImage(entry(ovmf.GUIDHashTable, d)) }
	meta := func(off byte) []byte { return tinyImage(entry(ovmf.GUIDSEVMetadata, []byte{off, 0, 0, 0})) }
	broken := tinyImage(entry(ovmf.GUIDHashTable, make([]byte, 8)))
	broken[64+8] = 0xff // the entry's length
	short := tinyImage()
	short[64] = 5 // the table's length
	for name, c := range map[string]struct {
		image []byte
		parse bool // the table itself is fine
	}{
		"empty":                 {nil, false},
		"entry leaves table":    {broken, false},
		"table shorter than 18": {short, false},
		"hash area of 7 bytes":  {area(1, 2, 3, 4, 5, 6, 7), true},
		"hash area over 4 GiB":  {area(0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0), true},
		"metadata off the end":  {meta(0xff), true},
		"metadata unsigned":     {meta(40), true},
		"metadata in footer":    {meta(3), true},
	} {
		t.Run(name, func(t *testing.T) {
			img, err := ovmf.Parse(c.image)
			if c.parse {
				if err != nil {
					t.Fatal(err)
				}
				_, _, e1 := img.HashArea()
				_, e2 := img.SEVMetadata()
				err = errors.Join(e1, e2)
			}
			var typed *ovmf.Error
			if !errors.Is(err, ovmf.ErrFormat) || !errors.As(err, &typed) {
				t.Errorf("error %v, want a typed one", err)
			}
		})
	}
	img, err := ovmf.Parse(make([]byte, 100))
	if err != nil || len(img.Entries) != 0 {
		t.Errorf("an image without a table: %v, %v", img, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(tinyImage(entry(ovmf.GUIDHashTable, make([]byte, 8)), entry(ovmf.GUIDSEVMetadata, []byte{40, 0, 0, 0})))
	f.Fuzz(func(t *testing.T, b []byte) {
		img, err := ovmf.Parse(b)
		if err != nil {
			return
		}
		_, _, _ = img.HashArea()
		_, _, _ = img.SecretArea()
		_, _, _ = img.ResetEIP()
		_, _ = img.SEVMetadata()
		_, _ = img.TDXMetadata()
	})
}

func TestDescriptors(t *testing.T) {
	user, system := t.TempDir(), t.TempDir()
	write := func(dir, name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	memory := func(image, feature string) string {
		return `{"description":"d","mapping":{"device":"memory","filename":"` + image + `"},
			"targets":[{"architecture":"x86_64","machines":["pc-q35-*"]}],"features":["` + feature + `"]}`
	}
	write(system, "50-a.json", memory("/system/a", "amd-sev"))
	write(system, "60-b.json", memory("/system/b", "amd-sev-snp"))
	write(system, "70-c.json", memory("/system/c", "amd-sev"))
	write(system, "80-bad.json", "{")
	write(user, "50-a.json", memory("/user/a", "amd-sev"))
	write(user, "70-c.json", "") // masks
	found, err := ovmf.FindDescriptors(user, system, filepath.Join(user, "missing"))
	if !errors.Is(err, ovmf.ErrFormat) {
		t.Errorf("the broken descriptor is not reported: %v", err)
	}
	var images []string
	for _, d := range found {
		images = append(images, d.Image)
	}
	if len(images) != 2 || images[0] != "/user/a" || images[1] != "/system/b" {
		t.Errorf("found %v", images)
	}
	if !found[0].Fits("x86_64", "q35", "amd-sev") || found[0].Fits("x86_64", "q35", "intel-tdx") ||
		found[0].Fits("aarch64", "virt") {
		t.Error("Fits decides wrongly")
	}
}

func FuzzParseDescriptor(f *testing.F) {
	f.Add([]byte(`{"mapping":{"device":"flash","executable":{"filename":"x","format":"raw"}}}`))
	f.Fuzz(func(t *testing.T, b []byte) { _, _, _ = ovmf.ParseDescriptor("fuzz", b) })
}
