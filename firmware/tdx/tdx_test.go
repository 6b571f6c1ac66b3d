package tdx

import (
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/internal/vectors"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/ovmf/ovmftest"
)

type vectorInputs struct {
	Firmware, Variant string
	Machine           string `json:"machine_type"`
}

func (in vectorInputs) gce() bool { return strings.HasPrefix(in.Variant, "gce-") }

func parse(t *testing.T, b []byte) *ovmf.Image {
	t.Helper()
	img, err := ovmf.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// TestMRTDVectors compares with gce-tcb-verifier: images made for tests as a whole,
// images of distributions from the first section on that has no contents.
func TestMRTDVectors(t *testing.T) {
	vectors.Each(t, "tdx-mrtd", func(t *testing.T, v vectors.Vector) {
		var in vectorInputs
		v.In(t, &in)
		var want struct{ Hex string }
		v.Want(t, &want)
		image, whole := vectors.Made(t, in.Firmware)
		if !whole {
			image = vectors.Facts(t, in.Firmware).Skeleton(t)
		}
		img := parse(t, image)
		var got [48]byte
		var err error
		switch {
		case !whole && !v.ExpectError:
			got = resumed(t, in, img)
		case in.gce():
			got, err = PredictGCE(img, in.Machine)
		default:
			got, err = Predict(img, PageByPage)
		}
		if v.ExpectError {
			if !errors.Is(err, ErrFirmware) {
				t.Errorf("%x, %v: want ErrFirmware", got, err)
			}
			return
		}
		if err != nil || hex.EncodeToString(got[:]) != want.Hex {
			t.Errorf("MRTD %x, %v, want %s", got, err, want.Hex)
		}
	})
}

// resumed is the MRTD of an image of which the sections with contents are recorded
// only as they were measured.
func resumed(t *testing.T, in vectorInputs, img *ovmf.Image) [48]byte {
	t.Helper()
	sections, err := checkedSections(img)
	if err != nil {
		t.Fatal(err)
	}
	if in.gce() {
		from := vectors.Facts(t, in.Firmware).MRTD.GCE
		m := &MRTD{from.State.SHA384(t)}
		if err := addGCE(m, img, gceMemory[in.Machine], sections, from.Count); err != nil {
			t.Fatal(err)
		}
		return m.Sum()
	}
	from := vectors.Facts(t, in.Firmware).MRTD.Upstream
	m := &MRTD{from.State.SHA384(t)}
	for _, s := range sections[from.Count:] {
		addSection(m, nil, s, PageByPage)
	}
	return m.Sum()
}

func TestUnknownMachine(t *testing.T) {
	img := parse(t, ovmftest.Generic())
	if got, err := PredictGCE(img, "c3-huge"); !errors.Is(err, ErrFirmware) {
		t.Errorf("MRTD for the machine c3-huge: %x, %v, want ErrFirmware", got, err)
	}
}

func TestNoMetadata(t *testing.T) {
	img, err := ovmf.Parse(make([]byte, 8192))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Predict(img, PageByPage); !errors.Is(err, ErrFirmware) {
		t.Errorf("an image without metadata: %v", err)
	}
}
