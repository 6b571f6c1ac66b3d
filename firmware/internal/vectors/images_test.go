//go:build !quick

package vectors_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"reflect"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/guid"
	"github.com/vmlatch/vmlatch/firmware/internal/vectors"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/sev/launch"
	"github.com/vmlatch/vmlatch/firmware/tdx"
)

var update = flag.Bool("update", false, "record the facts of the images that this machine has")

// TestFactsOfImages compares what is recorded of images with the images, where
// this machine has the versions that were recorded.
func TestFactsOfImages(t *testing.T) {
	recorded := map[string]*vectors.Firmware{}
	b, err := os.ReadFile("facts.json")
	if err == nil {
		err = json.Unmarshal(b, &recorded)
	}
	if err != nil {
		t.Fatal(err)
	}
	compared := 0
	for _, name := range vectors.Firmwares(t) {
		image, ok := vectors.Image(t, name)
		if !ok {
			continue
		}
		got := factsOf(t, image)
		if *update {
			recorded[name] = got
		}
		if !reflect.DeepEqual(got, recorded[name]) {
			have, _ := json.Marshal(got)
			want, _ := json.Marshal(recorded[name])
			t.Errorf("%s: facts %s, want %s", name, have, want)
		}
		compared++
	}
	if compared == 0 {
		t.Log("this machine has none of the images in the version that was recorded")
	}
	if *update {
		b, err := json.MarshalIndent(recorded, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile("facts.json", append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRealImages measures the images of this machine, of whatever version, in two
// ways: as a whole, and by their facts. make setup must have put them here.
func TestRealImages(t *testing.T) {
	for name, pkg := range map[string]string{
		"sid/OVMF.amdsev.fd":      "ovmf-amdsev",
		"sid/OVMF.fd":             "ovmf-generic",
		"sid/OVMF_CODE_4M.fd":     "ovmf-generic",
		"sid/OVMF.inteltdx.ms.fd": "ovmf-inteltdx",
		"bookworm/OVMF.fd":        "ovmf",
	} {
		t.Run(name, func(t *testing.T) {
			image := vectors.AnyVersion(t, name, pkg)
			facts := factsOf(t, image)
			img := parse(t, image)
			layout, err := launch.LayoutOf(img)
			if err != nil {
				t.Fatal(err)
			}
			skeleton, err := launch.LayoutOf(parse(t, facts.Skeleton(t)))
			if err != nil {
				t.Fatal(err)
			}
			if got := launch.PagesDigest(image); got.String() != facts.PagesDigest {
				t.Errorf("digest of the pages %v, want %s", got, facts.PagesDigest)
			}
			digest, err := launch.Digest(launch.Inputs{Technology: launch.SEV, Firmware: layout})
			if want := sha256.Sum256(image); err != nil || !bytes.Equal(digest, want[:]) {
				t.Errorf("SEV digest %x, %v, want %x", digest, err, want)
			}
			if !reflect.DeepEqual(skeleton.Sections, layout.Sections) || skeleton.ResetEIP != layout.ResetEIP ||
				skeleton.HashArea != layout.HashArea {
				t.Errorf("by its tables alone the image is %+v, want %+v", skeleton, layout)
			}
			if facts.MRTD == nil {
				return
			}
			got, err := tdx.Predict(img, tdx.PageByPage)
			if want := mrtd(t, img, false, 1<<30); err != nil || !bytes.Equal(got[:], want.sum) {
				t.Errorf("MRTD %x, %v, want %x", got, err, want.sum)
			}
		})
	}
}

func parse(t *testing.T, b []byte) *ovmf.Image {
	t.Helper()
	img, err := ovmf.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// factsOf calculates without the packages under test, but for the parser.
func factsOf(t *testing.T, b []byte) *vectors.Firmware {
	t.Helper()
	h := sha256.New()
	h.Write(b)
	f := &vectors.Firmware{Size: len(b), SHA256: vectors.StateOf(t, h)}
	img := parse(t, b)
	patch := func(back, size int) {
		f.Tables = append(f.Tables, vectors.Patch{Back: back, Hex: hex.EncodeToString(b[len(b)-back:][:size])})
	}
	if len(img.Entries) > 0 {
		size := int(binary.LittleEndian.Uint16(b[len(b)-50:]))
		patch(32+size, size)
	}
	for _, id := range []guid.GUID{ovmf.GUIDSEVMetadata, ovmf.GUIDTDXMetadata} {
		if d, ok := img.Entry(id); ok {
			back := int(binary.LittleEndian.Uint32(d))
			if back <= len(b) {
				patch(back, int(binary.LittleEndian.Uint32(b[len(b)-back+4:])))
			}
		}
	}
	if len(b)%4096 == 0 {
		f.PagesDigest = hex.EncodeToString(pages(b))
	}
	sections, err := img.TDXMetadata()
	if err != nil || len(sections) == 0 {
		return f
	}
	f.MRTD = &vectors.MRTD{}
	upstream, gce := 0, 0
	for i, s := range sections {
		if s.Attributes&1 != 0 {
			upstream = i + 1
		}
		if s.FileSize != 0 {
			gce = i + 1
		}
	}
	f.MRTD.Upstream = &vectors.Sections{Count: upstream, State: mrtd(t, img, false, upstream).state}
	f.MRTD.GCE = &vectors.Sections{Count: gce, State: mrtd(t, img, true, gce).state}
	return f
}

// pages is the SNP chain over an image's pages (SNP ABI, table 67).
func pages(b []byte) []byte {
	digest := make([]byte, 48)
	for off := 0; off < len(b); off += 4096 {
		contents := sha512.Sum384(b[off : off+4096])
		info := append(append(digest, contents[:]...), 0x70, 0, 1, 0, 0, 0, 0, 0)
		info = binary.LittleEndian.AppendUint64(info, uint64(1<<32-len(b)+off))
		next := sha512.Sum384(info)
		digest = next[:]
	}
	return digest
}

type domain struct {
	state vectors.State
	sum   []byte
}

// mrtd measures sections up to a count (TDX base, TDMR_EXTEND, TDH.MEM.PAGE.ADD).
func mrtd(t *testing.T, img *ovmf.Image, everything bool, count int) domain {
	t.Helper()
	sections, err := img.TDXMetadata()
	if err != nil {
		t.Fatal(err)
	}
	h := sha512.New384()
	record := func(name string, gpa uint64) {
		r := make([]byte, 128)
		copy(r, name)
		binary.LittleEndian.PutUint64(r[16:], gpa)
		h.Write(r)
	}
	for _, s := range sections[:min(count, len(sections))] {
		data := make([]byte, s.Size)
		copy(data, img.Bytes[s.FileOffset:s.FileOffset+s.FileSize])
		for off := uint64(0); off < s.Size; off += 4096 {
			record("MEM.PAGE.ADD", s.GPA+off)
			for chunk := off; (everything || s.Attributes&1 != 0) && chunk < off+4096; chunk += 256 {
				record("MR.EXTEND", s.GPA+chunk)
				h.Write(data[chunk : chunk+256])
			}
		}
	}
	return domain{vectors.StateOf(t, h), h.Sum(nil)}
}
