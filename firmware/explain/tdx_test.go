package explain

import (
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/ovmf/ovmftest"
	"github.com/vmlatch/vmlatch/firmware/tdx"
)

func TestMRTD(t *testing.T) {
	image := func(name string, b []byte) Image {
		img, err := ovmf.Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		return Image{name, img}
	}
	own, other := image("own.fd", ovmftest.AmdSev()), image("other.fd", ovmftest.Generic())
	none := image("none.fd", ovmftest.Image()) // has no TDX metadata
	mrtd := func(img Image, order tdx.Order) []byte {
		d, err := tdx.Predict(img.Image, order)
		if err != nil {
			t.Fatal(err)
		}
		return d[:]
	}
	gce, err := tdx.PredictGCE(own.Image, "c3-standard-88")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		observed []byte
		found    bool
		whats    string
	}{
		"agreement":   {mrtd(own, tdx.PageByPage), true, ""},
		"firmware":    {mrtd(other, tdx.PageByPage), true, "firmware"},
		"order":       {mrtd(own, tdx.TwoPass), true, "tdx-order"},
		"both":        {mrtd(other, tdx.TwoPass), true, "firmware tdx-order"},
		"hypervisor":  {gce[:], true, "hypervisor"},
		"unexplained": {make([]byte, 48), false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := MRTD(own, tdx.PageByPage, []Image{none, other}, c.observed)
			var whats []string
			for _, change := range r.Changes {
				whats = append(whats, change.What)
			}
			if r.Found != c.found || strings.Join(whats, " ") != c.whats || r.Tried == 0 {
				t.Errorf("found %t after %d, changes %v, want %t and %q", r.Found, r.Tried, whats, c.found, c.whats)
			}
		})
	}
	r := MRTD(own, tdx.TwoPass, nil, mrtd(own, tdx.PageByPage))
	if !r.Found || len(r.Changes) != 1 || !strings.Contains(r.Sentence(), "one by one, as Linux does") {
		t.Errorf("from two passes: %+v, want the order of Linux", r)
	}
	if r := MRTD(none, tdx.PageByPage, nil, make([]byte, 48)); r.Found || r.Tried != 0 {
		t.Errorf("without metadata: %+v, want nothing tried", r)
	}
}
