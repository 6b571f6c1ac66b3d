package tdx

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
)

// gceMemory is the memory in GiB of Google's C3 machine types.
var gceMemory = map[string]uint64{
	"c3-standard-4":   16,
	"c3-standard-8":   32,
	"c3-standard-22":  88,
	"c3-standard-44":  176,
	"c3-standard-88":  352,
	"c3-standard-176": 704,
}

// GCEMachines returns the machine types that PredictGCE knows.
func GCEMachines() []string { return slices.Sorted(maps.Keys(gceMemory)) }

// span is a range of guest-physical addresses.
type span struct{ start, size uint64 }

func (s span) end() uint64 { return s.start + s.size }

// Numbers of hand-off blocks (PI specification, volume 3, chapter 5), and the type
// and attribute for memory that a trust domain has yet to accept (UEFI 2.10,
// EfiUnacceptedMemoryType; edk2, needs-early-accept).
const (
	hobHandoff, hobResource, hobEnd             = 1, 3, 0xffff
	handoffSize, resourceSize, endSize          = 56, 48, 8
	handoffVersion                              = 9
	resourceSystemMemory, resourceUnaccepted    = 0, 7
	attributesTested, attributeNeedsEarlyAccept = 7, 0x10000000
	gib                                         = 1 << 30
	sectionTDHOB                                = 2
)

// PredictGCE returns the MRTD that older versions of Google's hypervisor give: they
// measured every section, and a TD HOB that depends on the machine's memory (as
// gce-tcb-verifier calculates it, "TD HOB bug").
func PredictGCE(img *ovmf.Image, machine string) ([48]byte, error) {
	memory, ok := gceMemory[machine]
	if !ok {
		return [48]byte{}, fmt.Errorf("%w: machine type %q: must be one of %v", ErrFirmware, machine, GCEMachines())
	}
	sections, err := checkedSections(img)
	if err != nil {
		return [48]byte{}, err
	}
	m := NewMRTD()
	if err := addGCE(m, img, memory, sections, 0); err != nil {
		return [48]byte{}, err
	}
	return m.Sum(), nil
}

// addGCE adds sections from a number on, for a machine of so many GiB.
func addGCE(m *MRTD, img *ovmf.Image, memory uint64, sections []ovmf.TDXSection, from int) error {
	var private []span
	for _, s := range sections {
		private = append(private, span{s.GPA, s.Size})
	}
	// 3 GiB below, the firmware's 2 MiB under 4 GiB, the rest above, node by node.
	banks := append([]span{{0, 3 * gib}, {4*gib - 2<<20, 2 << 20}}, nodes(memory)...)
	for _, s := range sections[from:] {
		data := img.Bytes[s.FileOffset : s.FileOffset+s.FileSize]
		if s.Type == sectionTDHOB {
			if data = handOff(s.GPA, private, without(banks, private)); uint64(len(data)) > s.Size {
				return fmt.Errorf("%w: a TD HOB of %d bytes does not fit its section", ErrFirmware, len(data))
			}
		}
		s.Attributes |= attributeExtend
		addSection(m, data, s, PageByPage)
	}
	return nil
}

// nodes returns the memory above 4 GiB of a machine of so many GiB. Each NUMA node
// has a bank of its own; 3 GiB of the first lie below.
func nodes(memory uint64) []span {
	const most = 176 // GiB of a node of the C3 machine types
	var banks []span
	start, below := uint64(4*gib), uint64(3)
	for left := memory; left > 0; {
		node := min(left, most)
		left -= node
		banks = append(banks, span{start, (node - below) * gib})
		start += (node - below) * gib
		below = 0
	}
	return banks
}

// without returns what of the banks lies in no other span, upward.
func without(banks, others []span) []span {
	others = slices.Clone(others)
	slices.SortFunc(others, func(a, b span) int {
		if a.start < b.start {
			return -1
		}
		return 1
	})
	var left []span
	for _, b := range banks {
		for _, o := range others {
			if o.size == 0 || o.end() <= b.start || o.start >= b.end() {
				continue
			}
			if o.start > b.start {
				left = append(left, span{b.start, o.start - b.start})
			}
			end := b.end()
			b.start = min(o.end(), end)
			b.size = end - b.start
		}
		if b.size > 0 {
			left = append(left, b)
		}
	}
	return left
}

// handOff is the list of hand-off blocks at an address.
func handOff(at uint64, private, unaccepted []span) []byte {
	le := binary.LittleEndian
	header := func(b []byte, kind, size uint16) []byte {
		return le.AppendUint32(le.AppendUint16(le.AppendUint16(b, kind), size), 0)
	}
	b := header(nil, hobHandoff, handoffSize)
	b = le.AppendUint32(le.AppendUint32(b, handoffVersion), 0) // boots with its full configuration
	b = append(b, make([]byte, 32)...)                         // memory top and bottom are not told
	b = le.AppendUint64(b, at+handoffSize+resourceSize*uint64(len(private)+len(unaccepted)))
	resource := func(kind, attributes uint32, s span) {
		b = append(header(b, hobResource, resourceSize), make([]byte, 16)...) // no owner
		b = le.AppendUint32(le.AppendUint32(b, kind), attributes)
		b = le.AppendUint64(le.AppendUint64(b, s.start), s.size)
	}
	for _, s := range private {
		resource(resourceSystemMemory, attributesTested, s)
	}
	for _, s := range unaccepted {
		attributes := uint32(attributesTested)
		if s.end() <= 4*gib {
			attributes |= attributeNeedsEarlyAccept
		}
		resource(resourceUnaccepted, attributes, s)
	}
	return header(b, hobEnd, endSize)
}
