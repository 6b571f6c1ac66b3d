package tdx

import (
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/internal/vectors"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
)

func TestMRTDVectors(t *testing.T) {
	vectors.Each(t, "tdx-mrtd", func(t *testing.T, v vectors.Vector) {
		var in struct{ Firmware, Variant string }
		v.In(t, &in)
		if strings.HasPrefix(in.Variant, "gce-") {
			t.Skip("Google's bug mode measures the TD HOB of one machine shape, which is not predicted here")
		}
		var want struct{ Hex string }
		v.Want(t, &want)
		img, err := ovmf.Parse(vectors.File(t, in.Firmware))
		if err != nil {
			t.Fatal(err)
		}
		got, err := Predict(img, PageByPage)
		if v.ExpectError {
			if !errors.Is(err, ErrFirmware) {
				t.Errorf("%x, %v: want an error", got, err)
			}
			return
		}
		if err != nil || hex.EncodeToString(got[:]) != want.Hex {
			t.Errorf("MRTD %x, %v, want %s", got, err, want.Hex)
		}
		other, err := Predict(img, TwoPass)
		if err != nil || other == got {
			t.Errorf("two passes: %x, %v", other, err)
		}
	})
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
