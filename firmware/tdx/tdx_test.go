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
		var in struct {
			Firmware, Variant string
			Machine           string `json:"machine_type"`
		}
		v.In(t, &in)
		var want struct{ Hex string }
		v.Want(t, &want)
		img, err := ovmf.Parse(vectors.File(t, in.Firmware))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(in.Variant, "gce-") {
			if got, err := PredictGCE(img, in.Machine); err != nil || hex.EncodeToString(got[:]) != want.Hex {
				t.Errorf("MRTD %x, %v, want %s", got, err, want.Hex)
			}
			if _, err := PredictGCE(img, "c3-huge"); !errors.Is(err, ErrFirmware) {
				t.Errorf("an unknown machine: %v", err)
			}
			return
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
