package ovmf

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// What QEMU makes of metadata: images that parse are not all images that it takes.

// AcceptsSNP says why QEMU would end a launch for an image's SEV metadata; "" if it would
// not (QEMU, target/i386/sev.c, snp_populate_metadata_pages).
func AcceptsSNP(sections []Section) string {
	spans := make([]span, 0, len(sections))
	for i, s := range sections {
		switch {
		case s.Type < SectionMemory || s.Type > SectionSVSMCAA && s.Type != SectionKernelHashes:
			return fmt.Sprintf("section %d of its SEV metadata has the unknown type %#x", i, uint32(s.Type))
		case s.Size == 0:
			return fmt.Sprintf("section %d of its SEV metadata (%v) is a placeholder: it names no memory (%#x+0)", i,
				s.Type, s.GPA)
		case s.Size%page != 0 || s.GPA%page != 0:
			return fmt.Sprintf(
				"section %d of its SEV metadata (%v, %#x+%#x) is not made of pages",
				i,
				s.Type,
				s.GPA,
				s.Size,
			)
		}
		spans = append(spans, span{uint64(s.GPA), uint64(s.Size)})
	}
	if a, b, ok := overlap(spans); ok {
		return fmt.Sprintf("sections %d and %d of its SEV metadata overlap", a, b)
	}
	return ""
}

// Types of TDX metadata sections (Intel, TDX Virtual Firmware Design Guide, section 11).
const (
	TDXSectionBFV     = 0 // code
	TDXSectionCFV     = 1 // variables
	TDXSectionTDHOB   = 2
	TDXSectionTempMem = 3
)

// AcceptsTDX says why QEMU would end a launch for an image's TDX metadata; "" if it would
// not (QEMU, hw/i386/tdvf.c, tdvf_parse_and_check_section_entry; target/i386/kvm/tdx.c).
func (img *Image) AcceptsTDX() string {
	const part, header, item = "TDX metadata", 16, 32
	sections, err := img.TDXMetadata()
	if err != nil {
		return err.Error()
	}
	if len(sections) == 0 {
		return "it has no TDX metadata"
	}
	if b, err := img.locate(GUIDTDXMetadata, part, "TDVF", header); err == nil {
		if length := binary.LittleEndian.Uint32(b[4:]); int(length) != header+item*len(sections) {
			return fmt.Sprintf("its TDX metadata has %d sections, and says that it has %d bytes", len(sections), length)
		}
	}
	spans, hobs := make([]span, 0, len(sections)), 0
	for i, s := range sections {
		what := fmt.Sprintf("section %d of its TDX metadata (type %d, %#x+%#x)", i, s.Type, s.GPA, s.Size)
		switch {
		case s.Type > TDXSectionTempMem:
			return fmt.Sprintf("section %d of its TDX metadata has type %d, which QEMU does not support"+
				" (a build for other hypervisors, or for a newer QEMU)", i, s.Type)
		case uint64(s.FileSize) > s.Size:
			return what + " has more data in the file than room in memory"
		case s.GPA%page != 0 || s.Size%page != 0 || s.Size == 0:
			return what + " is not made of pages"
		case s.Type <= TDXSectionCFV && s.FileSize == 0:
			return what + " has no data in the file"
		case s.Type >= TDXSectionTDHOB && s.FileSize != 0:
			return fmt.Sprintf("%s has %#x bytes of data in the file, and must have none", what, s.FileSize)
		}
		if s.Type == TDXSectionTDHOB {
			hobs++
		}
		spans = append(spans, span{s.GPA, s.Size})
	}
	if a, b, ok := overlap(spans); ok {
		return fmt.Sprintf("sections %d and %d of its TDX metadata overlap", a, b)
	}
	if hobs != 1 {
		return fmt.Sprintf("its TDX metadata has %d sections for a TD HOB, and must have one", hobs)
	}
	return ""
}

const page = 4096

type span struct{ base, size uint64 }

// overlap finds two spans that share memory, by their numbers.
func overlap(spans []span) (a, b int, found bool) {
	order := make([]int, len(spans))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(x, y int) int {
		if spans[x].base < spans[y].base {
			return -1
		}
		return 1
	})
	for n := 1; n < len(order); n++ {
		before, next := order[n-1], order[n]
		if spans[before].base+spans[before].size > spans[next].base {
			return min(before, next), max(before, next), true
		}
	}
	return 0, 0, false
}
