package tdx

import (
	"errors"
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
)

// Order is in which order pages are added and measured.
type Order uint8

const (
	// PageByPage is Linux's KVM: each page is added and at once extended.
	PageByPage Order = iota
	// TwoPass is the trees before TDX was in Linux: all pages of a section are
	// added, then all are extended.
	TwoPass
)

// attributeExtend marks sections whose contents are measured (Intel, TDX Virtual
// Firmware Design Guide, section 11, MR.EXTEND).
const attributeExtend = 1

// ErrFirmware is wrapped by errors about images for which no MRTD exists.
var ErrFirmware = errors.New("MRTD")

// maxMemory bounds what metadata may name in all.
const maxMemory = 1 << 30

// Predict returns the MRTD of a trust domain that starts with the firmware. The
// image must be the whole one, variables and code in one file, as its metadata
// counts offsets from its beginning.
func Predict(img *ovmf.Image, order Order) ([48]byte, error) {
	sections, err := checkedSections(img)
	if err != nil {
		return [48]byte{}, err
	}
	m := NewMRTD()
	for _, s := range sections {
		addSection(m, img.Bytes[s.FileOffset:s.FileOffset+s.FileSize], s, order)
	}
	return m.Sum(), nil
}

// checkedSections are the sections of an image that can be measured.
func checkedSections(img *ovmf.Image) ([]ovmf.TDXSection, error) {
	sections, err := img.TDXMetadata()
	if err != nil {
		return nil, fmt.Errorf("%w: %w (a code image without its variables? give them as one file)", ErrFirmware, err)
	}
	if len(sections) == 0 {
		return nil, fmt.Errorf("%w: the firmware has no TDX metadata, so it cannot run under TDX", ErrFirmware)
	}
	total := uint64(0)
	for i, s := range sections {
		if total += s.Size; s.Size > maxMemory || total > maxMemory {
			return nil, fmt.Errorf("%w: the TDX metadata names more than %d bytes of memory", ErrFirmware, maxMemory)
		}
		if s.Size%PageSize != 0 || s.GPA%PageSize != 0 || uint64(s.FileSize) > s.Size {
			return nil, fmt.Errorf("%w: section %d (%#x+%#x, %#x in the file) is not made of pages", ErrFirmware, i,
				s.GPA, s.Size, s.FileSize)
		}
	}
	return sections, nil
}

// addSection adds a section's pages; what its file data does not fill is zero.
func addSection(m *MRTD, data []byte, s ovmf.TDXSection, order Order) {
	measured := s.Attributes&attributeExtend != 0
	extend := func(off uint64) {
		var page [PageSize]byte
		if off < uint64(len(data)) {
			copy(page[:], data[off:])
		}
		m.ExtendPage(s.GPA+off, page[:])
	}
	for off := uint64(0); off < s.Size; off += PageSize {
		m.AddPage(s.GPA + off)
		if measured && order == PageByPage {
			extend(off)
		}
	}
	for off := uint64(0); measured && order == TwoPass && off < s.Size; off += PageSize {
		extend(off)
	}
}
