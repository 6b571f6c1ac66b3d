package igvm

import (
	"crypto/sha512"
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/sev"
)

// Options choose where loaders differ.
type Options struct {
	// ZeroAsNormal measures pages without data as normal pages full of zeros, as
	// igvmmeasure does by default; QEMU submits them as zero pages.
	ZeroAsNormal bool
	// FileOrder submits pages in the order of the file, as other loaders do. QEMU holds a
	// run of pages back until the next page breaks it or the file ends; a parameter insert
	// in between is submitted before the run.
	FileOrder bool
	// VCPUs is how many vCPUs the guest has, if not one for each context of the file: KVM
	// measures a register page for each, and the file's last context for those behind.
	VCPUs int
}

// Flags and types of page data (IGVM, PageDataFlags, IgvmPageDataType).
const (
	flagLarge      = 1 << 0 // 2 MiB
	flagUnmeasured = 1 << 1
	dataNormal     = 0
	dataSecrets    = 1
	dataCPUID      = 2
	dataCPUIDXF    = 3
)

// maxPages bounds what a file may lay out: 4 GiB.
const maxPages = 1 << 20

// loader follows the headers as QEMU does.
type loader struct {
	f        *File
	opt      Options
	mask     uint32
	areas    map[uint32]uint64 // sizes, by index
	digest   sev.SNPDigest
	pages    int
	contexts int
	last     []byte // context
	// registers are the contexts, which KVM measures when the launch is finished.
	registers [][]byte

	run     []pending // that QEMU holds back
	runEnd  uint64    // where the next page must lie
	runKind [4]uint32 // what all of its pages have
}

// pending is a page that is not submitted yet.
type pending struct {
	kind sev.PageType
	gpa  uint64
	sum  [48]byte
}

// SNPDigest predicts the launch digest of an SEV-SNP guest with as many vCPUs as
// the file has contexts. KVM submits those when the launch is finished, after all
// pages and at its own address, so a file that wants them elsewhere is refused.
func (f *File) SNPDigest(opt Options) (sev.SNPDigest, error) {
	l := loader{f: f, opt: opt, areas: map[uint32]uint64{}}
	for _, p := range f.Platforms {
		if p.Type == platformSNP {
			l.mask = p.Mask
		}
	}
	if l.mask == 0 {
		return sev.SNPDigest{}, fmt.Errorf("%w: it does not support SEV-SNP", ErrPlatform)
	}
	for i, h := range f.Headers {
		if err := l.load(h); err != nil {
			return sev.SNPDigest{}, fmt.Errorf("variable header %d (%v): %w", i, h.Type, err)
		}
	}
	if err := l.flush(); err != nil {
		return sev.SNPDigest{}, err
	}
	for _, page := range l.registers {
		l.digest.Extend(sev.PageVMSA, sev.VMSAAddress, sha512.Sum384(page))
	}
	for n := l.contexts; n < opt.VCPUs && l.last != nil; n++ {
		l.digest.Extend(sev.PageVMSA, sev.VMSAAddress, sha512.Sum384(l.last))
	}
	if l.pages == 0 || l.contexts == 0 {
		return sev.SNPDigest{}, fmt.Errorf("%w: it has %d pages and %d CPU contexts for SEV-SNP", ErrPlatform,
			l.pages, l.contexts)
	}
	return l.digest, nil
}

// Contexts counts the register pages that the file has for SEV-SNP guests.
func (f *File) Contexts() int {
	mask, n := uint32(0), 0
	for _, p := range f.Platforms {
		if p.Type == platformSNP {
			mask = p.Mask
		}
	}
	for _, h := range f.Headers {
		if h.Type == TypeVPContext && len(h.Data) >= 12 && le.Uint32(h.Data[8:])&mask != 0 {
			n++
		}
	}
	return n
}

// ExtendVCPUs returns the digests of guests with one to so many vCPUs more than a digest
// is of: KVM measures the last context for each.
func (f *File) ExtendVCPUs(d sev.SNPDigest, more int) ([]sev.SNPDigest, error) {
	l := loader{f: f}
	for _, p := range f.Platforms {
		if p.Type == platformSNP {
			l.mask = p.Mask
		}
	}
	for _, h := range f.Headers {
		if h.Type == TypeVPContext {
			if err := l.load(h); err != nil {
				return nil, err
			}
		}
	}
	var all []sev.SNPDigest
	for range more {
		d.Extend(sev.PageVMSA, sev.VMSAAddress, sha512.Sum384(l.last))
		all = append(all, d)
	}
	return all, nil
}

// extend adds one page.
func (l *loader) extend(t sev.PageType, gpa uint64, sum [48]byte) error {
	if l.pages++; l.pages > maxPages {
		return malformed("more than %d pages", maxPages)
	}
	if l.contexts > 0 && l.opt.FileOrder {
		return fmt.Errorf("%w: memory behind a CPU context, which KVM measures last", ErrPlatform)
	}
	l.digest.Extend(t, gpa, sum)
	return nil
}

// flush submits the run of pages that is held back.
func (l *loader) flush() error {
	for _, p := range l.run {
		if err := l.extend(p.kind, p.gpa, p.sum); err != nil {
			return err
		}
	}
	l.run = l.run[:0]
	return nil
}

// hold adds a page to the run, or submits the run and begins another (QEMU,
// qigvm_process_mem_page, qigvm_page_attrs_equal).
func (l *loader) hold(pages []pending, gpa, size uint64, kind [4]uint32) error {
	if l.opt.FileOrder || len(l.run) > 0 && (gpa != l.runEnd || kind != l.runKind) {
		if err := l.flush(); err != nil {
			return err
		}
	}
	if len(l.run)+len(pages)+l.pages > maxPages {
		return malformed("more than %d pages", maxPages)
	}
	l.run, l.runEnd, l.runKind = append(l.run, pages...), gpa+size, kind
	if l.opt.FileOrder {
		return l.flush()
	}
	return nil
}

// load adds what one header submits (QEMU, qigvm_directive_…).
func (l *loader) load(h Header) error {
	need := map[HeaderType]int{
		TypePageData: 24, TypeVPContext: 18, TypeParameterArea: 16, TypeParameterInsert: 16,
	}[h.Type]
	if len(h.Data) < need {
		return malformed("%d bytes, must be %d", len(h.Data), need)
	}
	if !l.opt.FileOrder && !qemuKnows(h.Type) {
		return fmt.Errorf("%w: QEMU ends with \"Unknown header type\" at %v (%#x)", ErrPlatform, h.Type, uint32(h.Type))
	}
	switch h.Type {
	case TypePageData: // u64 gpa; u32 mask, offset, flags; u16 type
		if le.Uint32(h.Data[8:])&l.mask != 0 {
			return l.pageData(h.Data)
		}
	case TypeVPContext: // u64 gpa; u32 mask, offset; u16 vp
		if le.Uint32(h.Data[8:])&l.mask == 0 {
			return nil
		}
		if gpa := le.Uint64(h.Data); gpa != sev.VMSAAddress {
			return fmt.Errorf("%w: a CPU context at %#x, which KVM has at %#x", ErrPlatform, gpa,
				uint64(sev.VMSAAddress))
		}
		page, err := l.f.data(le.Uint32(h.Data[12:]), sev.PageSize)
		if err != nil {
			return err
		}
		l.contexts++
		l.last = page
		l.registers = append(l.registers, page)
	case TypeParameterArea: // u64 size; u32 index, offset
		size := le.Uint64(h.Data)
		if size > maxFile || size%sev.PageSize != 0 {
			return malformed("a parameter area of %d bytes", size)
		}
		l.areas[le.Uint32(h.Data[8:])] = size
	case TypeParameterInsert: // u64 gpa; u32 mask, index
		if le.Uint32(h.Data[8:])&l.mask == 0 {
			return nil
		}
		size, ok := l.areas[le.Uint32(h.Data[12:])]
		if !ok {
			return malformed("no parameter area %d", le.Uint32(h.Data[12:]))
		}
		for off := uint64(0); off < size; off += sev.PageSize {
			if err := l.extend(sev.PageUnmeasured, le.Uint64(h.Data)+off, [48]byte{}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *loader) pageData(h []byte) error {
	gpa, off, flags, kind := le.Uint64(h), le.Uint32(h[12:]), le.Uint32(h[16:]), le.Uint16(h[20:])
	size := uint64(sev.PageSize)
	if flags&flagLarge != 0 {
		size = 2 << 20
	}
	var t sev.PageType
	switch kind {
	case dataNormal:
		t = sev.PageNormal
		if flags&flagUnmeasured != 0 {
			t = sev.PageUnmeasured
		} else if off == 0 && !l.opt.ZeroAsNormal {
			t = sev.PageZero
		}
	case dataSecrets:
		t = sev.PageSecrets
	case dataCPUID, dataCPUIDXF:
		t = sev.PageCPUID
	default:
		return malformed("page data of type %d", kind)
	}
	var contents []byte
	if t == sev.PageNormal {
		if contents = make([]byte, size); off != 0 {
			b, err := l.f.data(off, size)
			if err != nil {
				return err
			}
			contents = b
		}
	}
	var pages []pending
	for p := uint64(0); p < size; p += sev.PageSize {
		var sum [48]byte
		if contents != nil {
			sum = sha512.Sum384(contents[p : p+sev.PageSize])
		}
		pages = append(pages, pending{t, gpa + p, sum})
	}
	data := uint32(0)
	if off != 0 {
		data = 1 // pages with data and without are of different kinds
	}
	return l.hold(pages, gpa, size, [4]uint32{flags, uint32(kind), le.Uint32(h[8:]), data})
}

// data is file data at an offset; a file may end before its last page does.
func (f *File) data(off uint32, size uint64) ([]byte, error) {
	if uint64(off) >= uint64(len(f.Bytes)) {
		return nil, malformed("file data at %#x leaves the file", off)
	}
	b := make([]byte, size)
	copy(b, f.Bytes[off:])
	return b, nil
}

// qemuKnows reports whether QEMU has code for a header (QEMU, backends/igvm.c, handlers).
// It refuses all others, also those that a loader may skip.
func qemuKnows(t HeaderType) bool {
	switch t {
	case TypeSupportedPlatform, TypeGuestPolicy, TypePageData, TypeVPContext, TypeParameterArea, TypeParameterInsert,
		TypeRequiredMemory, 0x307, 0x309, 0x30b, 0x30c, 0x313:
		return true
	}
	return false
}
