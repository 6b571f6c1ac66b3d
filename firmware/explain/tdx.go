package explain

import (
	"bytes"
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/igvm"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/tdx"
)

// Image is a firmware image by name.
type Image struct {
	Name  string
	Image *ovmf.Image
}

// MRTD explains a trust domain's build-time measurement: another firmware, another
// order of pages, or both.
func MRTD(own Image, order tdx.Order, others []Image, observed []byte) *Result {
	r := &Result{Changes: []Change{}}
	orders := []tdx.Order{order, tdx.TwoPass - order}
	names := map[tdx.Order]string{
		tdx.PageByPage: "pages were added and measured one by one, as Linux does",
		tdx.TwoPass: "all pages of a section were added before they were measured, " +
			"as trees before TDX was in Linux do",
	}
	for n := range 3 { // changes
		for i, img := range append([]Image{own}, others...) {
			for j, o := range orders {
				if min(i, 1)+j != n {
					continue
				}
				d, err := tdx.Predict(img.Image, o)
				if err != nil {
					continue
				}
				if r.Tried++; !bytes.Equal(d[:], observed) {
					continue
				}
				r.Found = true
				if i > 0 {
					r.Changes = append(
						r.Changes,
						Change{
							"firmware",
							own.Name,
							img.Name,
							fmt.Sprintf("the firmware is %s instead of %s", img.Name, own.Name),
						},
					)
				}
				if j > 0 {
					r.Changes = append(r.Changes, Change{"tdx-order", fmt.Sprint(order), fmt.Sprint(o), names[o]})
				}
				return r
			}
		}
	}
	for _, machine := range tdx.GCEMachines() {
		d, err := tdx.PredictGCE(own.Image, machine)
		if err != nil {
			continue
		}
		if r.Tried++; bytes.Equal(d[:], observed) {
			r.Found = true
			say := "an older Google hypervisor launched it on a " + machine +
				", and measured all sections and its TD HOB"
			r.Changes = append(r.Changes, Change{"hypervisor", "KVM", "GCE " + machine, say})
			return r
		}
	}
	return r
}

// IGVM explains the digest of a guest that was launched from an IGVM file.
func IGVM(f *igvm.File, observed []byte) *Result {
	r := &Result{Changes: []Change{}}
	const mostVCPUs = 512
	zero := Change{
		"igvm-zero", "zero pages", "normal pages",
		"pages without data were measured as pages full of zeros, as igvmmeasure does by default",
	}
	order := Change{
		"igvm-order", "QEMU's order", "the file's order",
		"pages were submitted in the order of the file, as other loaders do; QEMU holds runs of pages back",
	}
	for _, try := range []struct {
		opt     igvm.Options
		changes []Change
	}{
		{igvm.Options{}, nil},
		{igvm.Options{ZeroAsNormal: true}, []Change{zero}},
		{igvm.Options{FileOrder: true}, []Change{order}},
		{igvm.Options{FileOrder: true, ZeroAsNormal: true}, []Change{order, zero}},
	} {
		d, err := f.SNPDigest(try.opt)
		if err != nil {
			continue
		}
		if r.Tried++; bytes.Equal(d[:], observed) {
			r.Found, r.Changes = true, append(r.Changes, try.changes...)
			return r
		}
		more, err := f.ExtendVCPUs(d, mostVCPUs)
		if err != nil {
			continue
		}
		for i, d := range more {
			if r.Tried++; bytes.Equal(d[:], observed) {
				has := f.Contexts()
				r.Found = true
				r.Changes = append(append(r.Changes, Change{
					"vcpus", fmt.Sprint(has), fmt.Sprint(has + i + 1),
					fmt.Sprintf(
						"the guest has %d vCPUs; the file has register pages for %d, and KVM measures one for each",
						has+i+1,
						has,
					),
				}), try.changes...)
				return r
			}
		}
	}
	return r
}
