package tdx

import (
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/ovmf/ovmftest"
)

func TestSectionsRefused(t *testing.T) {
	const page = PageSize
	for name, c := range map[string]struct {
		sections []ovmf.TDXSection
		say      string
	}{
		"size":           {[]ovmf.TDXSection{{GPA: page, Size: page + 1}}, "section 0 (0x1000+0x1001, 0x0"},
		"address":        {[]ovmf.TDXSection{{Size: page}, {GPA: 1, Size: page}}, "section 1 (0x1+0x1000"},
		"more in file":   {[]ovmf.TDXSection{{FileSize: page + 1, Size: page}}, "is not made of pages"},
		"one too large":  {[]ovmf.TDXSection{{Size: maxMemory + page}}, "more than 1073741824 bytes"},
		"too large":      {[]ovmf.TDXSection{{Size: maxMemory}, {Size: page}}, "more than 1073741824 bytes"},
		"sum that wraps": {[]ovmf.TDXSection{{Size: page}, {Size: 1<<64 - page}}, "more than 1073741824 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			img := parse(t, ovmftest.Image(ovmftest.TDXMetadata(c.sections...)))
			_, err := Predict(img, PageByPage)
			_, gceErr := PredictGCE(img, "c3-standard-4")
			for _, err := range []error{err, gceErr} {
				if !errors.Is(err, ErrFirmware) || !strings.Contains(err.Error(), c.say) {
					t.Errorf("%v, want ErrFirmware with %q", err, c.say)
				}
			}
		})
	}
	img := parse(t, ovmftest.Image(ovmftest.TDXMetadata(ovmf.TDXSection{FileSize: page, Size: page})))
	if _, err := Predict(img, PageByPage); err != nil {
		t.Errorf("a section that its data fills: %v, want an MRTD", err)
	}
	img = parse(t, ovmftest.Image(ovmftest.TDXMetadata(ovmf.TDXSection{Size: maxMemory})))
	if _, err := Predict(img, PageByPage); err != nil {
		t.Errorf("as much memory as is allowed: %v, want an MRTD", err)
	}
	// Metadata that points outside is told as what it mostly is.
	img = parse(t, ovmftest.Image(ovmftest.TDXMetadata(
		ovmf.TDXSection{FileOffset: 1 << 20, FileSize: page, Size: page})))
	if _, err := Predict(img, PageByPage); !errors.Is(err, ErrFirmware) || !errors.Is(err, ovmf.ErrFormat) {
		t.Errorf("a section outside the image: %v, want ErrFirmware and ErrFormat", err)
	}
	hob := []ovmf.TDXSection{{Type: sectionTDHOB, Size: 0}}
	img = parse(t, ovmftest.Image(ovmftest.TDXMetadata(hob...)))
	if _, err := PredictGCE(img, "c3-standard-4"); !errors.Is(err, ErrFirmware) {
		t.Errorf("a TD HOB without room: %v, want ErrFirmware", err)
	}
}

// TestOrders calculates both orders of two pages by hand.
func TestOrders(t *testing.T) {
	const gpa = 0x10000
	image := ovmftest.Image(ovmftest.TDXMetadata(
		ovmf.TDXSection{FileSize: PageSize + 100, GPA: gpa, Size: 2 * PageSize, Attributes: 1},
		ovmf.TDXSection{GPA: 0x40000, Size: PageSize, Attributes: 2}, // not measured
	))
	contents := make([]byte, 2*PageSize) // what the file does not fill is zero
	copy(contents, image[:PageSize+100])
	for _, order := range []Order{PageByPage, TwoPass} {
		h := sha512.New384()
		record := func(name string, gpa uint64) {
			r := make([]byte, 128)
			copy(r, name)
			binary.LittleEndian.PutUint64(r[16:], gpa)
			h.Write(r)
		}
		extend := func(p int) {
			for off := p * PageSize; off < (p+1)*PageSize; off += 256 {
				record("MR.EXTEND", gpa+uint64(off))
				h.Write(contents[off : off+256])
			}
		}
		for p := range 2 {
			record("MEM.PAGE.ADD", gpa+uint64(p*PageSize))
			if order == PageByPage {
				extend(p)
			}
		}
		if order == TwoPass {
			extend(0)
			extend(1)
		}
		record("MEM.PAGE.ADD", 0x40000)
		got, err := Predict(parse(t, image), order)
		if want := h.Sum(nil); err != nil || !slices.Equal(got[:], want) {
			t.Errorf("order %d: MRTD %x, %v, want %x", order, got, err, want)
		}
	}
}

func TestWithout(t *testing.T) {
	for name, c := range map[string]struct{ banks, others, want []span }{
		"nothing taken":    {[]span{{0, 10}}, nil, []span{{0, 10}}},
		"beginning":        {[]span{{0, 10}}, []span{{0, 4}}, []span{{4, 6}}},
		"end":              {[]span{{0, 10}}, []span{{6, 4}}, []span{{0, 6}}},
		"middle":           {[]span{{0, 10}}, []span{{4, 2}}, []span{{0, 4}, {6, 4}}},
		"all":              {[]span{{0, 10}}, []span{{0, 10}}, nil},
		"more than all":    {[]span{{2, 4}}, []span{{0, 10}}, nil},
		"out of order":     {[]span{{0, 10}}, []span{{6, 2}, {1, 2}}, []span{{0, 1}, {3, 3}, {8, 2}}},
		"just before":      {[]span{{4, 4}}, []span{{0, 4}}, []span{{4, 4}}},
		"just behind":      {[]span{{4, 4}}, []span{{8, 4}}, []span{{4, 4}}},
		"empty":            {[]span{{0, 10}}, []span{{5, 0}}, []span{{0, 10}}},
		"over two banks":   {[]span{{0, 4}, {4, 4}}, []span{{2, 4}}, []span{{0, 2}, {6, 2}}},
		"beyond the end":   {[]span{{0, 4}}, []span{{2, 9}}, []span{{0, 2}}},
		"next to another":  {[]span{{0, 9}}, []span{{2, 2}, {4, 2}}, []span{{0, 2}, {6, 3}}},
		"one over another": {[]span{{0, 9}}, []span{{2, 4}, {3, 1}}, []span{{0, 2}, {6, 3}}},
	} {
		if got := without(c.banks, c.others); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// TestNodes: a bank for each 176 GiB, of which the first has 3 below 4 GiB.
func TestNodes(t *testing.T) {
	for memory, want := range map[uint64][]span{
		16:  {{4 * gib, 13 * gib}},
		176: {{4 * gib, 173 * gib}},
		352: {{4 * gib, 173 * gib}, {177 * gib, 176 * gib}},
	} {
		if got := nodes(memory); !slices.Equal(got, want) {
			t.Errorf("%d GiB: %v, want %v", memory, got, want)
		}
	}
}
