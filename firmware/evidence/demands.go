package evidence

import (
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/evidence/policy"
	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/firmware/tdx/rtmr"
)

// DemandsOf is what a policy demands of a technology.
func DemandsOf(f *policy.File, technology string) (*Demands, error) {
	d := &Demands{Name: f.Name}
	var err error
	switch technology {
	case SNP:
		d.Report, err = f.Report()
	case VTPM:
		d.TPM, err = f.Registers()
		return d, err
	default:
		d.Quote, err = f.Quote()
	}
	if err != nil {
		return nil, err
	}
	digests, err := f.Digests()
	if err != nil {
		return nil, err
	}
	if d.Report != nil {
		d.Report.Measurements = [][]byte{}
	} else {
		d.Quote.MRTD, d.Quote.RTMR[1], d.Quote.RTMR[2] = [][]byte{}, [][]byte{}, [][]byte{}
	}
	for _, x := range digests {
		if x.Technology != technology {
			continue
		}
		switch x.Register {
		case "MEASUREMENT":
			d.Report.Measurements = append(d.Report.Measurements, x.Value)
		case "MRTD":
			d.Quote.MRTD = append(d.Quote.MRTD, x.Value)
		case "RTMR1":
			d.Quote.RTMR[1] = append(d.Quote.RTMR[1], x.Value)
		case "RTMR2":
			d.Quote.RTMR[2] = append(d.Quote.RTMR[2], x.Value)
		}
	}
	if technology == SNP {
		return d, nil
	}
	r, err := f.RTMR0()
	if err != nil {
		return nil, err
	}
	if r.Zero {
		d.Quote.RTMR[0] = [][]byte{make([]byte, 48)}
	}
	d.Hardware, err = HardwareOf(f, r)
	return d, err
}

// HardwareOf reads the profile of RTMR0 that a policy names; nil for none.
func HardwareOf(f *policy.File, r *policy.RTMR0) (*rtmr.Hardware, error) {
	if r.Profile == "" {
		return nil, nil
	}
	file := f.ProfilePath(r.Profile)
	b, err := regular.Read(file, rtmr.MaxHardware)
	if err != nil {
		return nil, err
	}
	h, err := rtmr.ParseHardware(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return h, nil
}
