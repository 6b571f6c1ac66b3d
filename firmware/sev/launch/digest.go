package launch

import (
	"bytes"
	"crypto/sha512"
	"fmt"
	"hash"
	"hash/maphash"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/sev"
)

// Digest predicts the launch digest: 32 bytes for SEV and SEV-ES, 48 for SEV-SNP.
func Digest(in Inputs) ([]byte, error) {
	m, err := Begin(in)
	if err != nil {
		return nil, err
	}
	if err := m.AddVCPUs(in.VCPUs); err != nil {
		return nil, err
	}
	return m.Sum(), nil
}

// Measurement is a digest under way: everything but some or all vCPUs. Copies of
// it can go on in different ways.
type Measurement struct {
	in    *Inputs
	snp   sev.SNPDigest
	sha   hash.Cloner // SEV, SEV-ES
	vcpus int         // that were added
	pages *vcpuPages
}

// vcpuPages are the two register pages of a launch, and their hashes for SNP.
type vcpuPages struct {
	boot, others         *[4096]byte
	bootHash, othersHash [48]byte
}

// Begin measures what comes before the vCPUs.
func Begin(in Inputs) (*Measurement, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	m := &Measurement{in: &in}
	if in.Technology != SNP {
		return m, m.beginSHA256()
	}
	return m, m.beginSNP()
}

func (m *Measurement) beginSHA256() error {
	m.sha = m.in.Firmware.imageSHA256()
	if m.in.Kernel != nil {
		if a := m.in.Firmware.HashArea; !a.Holds() {
			return fmt.Errorf("%w (base=%#x size=%#x)", sev.ErrNoHashTable, a.Base, a.Size)
		}
		table := m.in.Kernel.Table()
		m.sha.Write(table[:])
	}
	return nil
}

func (m *Measurement) beginSNP() error {
	f := m.in.Firmware
	m.snp = f.pagesDigest()
	if m.in.SVSM == nil {
		return m.addSections(f.Sections)
	}
	s := m.in.SVSM
	gpa, err := s.gpa(f)
	if err != nil {
		return err
	}
	addPages(&m.snp, gpa, s.Image.Bytes)
	sections, err := s.Image.SEVMetadata()
	if err != nil {
		return err
	}
	return m.addSections(sections)
}

// PagesDigest is the SNP digest of a firmware image alone, loaded below 4 GiB;
// its size must be a multiple of the page size.
func PagesDigest(image []byte) sev.SNPDigest {
	var d sev.SNPDigest
	addPages(&d, 1<<32-uint64(len(image)), image)
	return d
}

// addPages adds whole pages. Images are full of equal pages, so each content is
// hashed once.
func addPages(d *sev.SNPDigest, gpa uint64, b []byte) {
	type known struct {
		page []byte
		sum  [48]byte
	}
	seed, seen := maphash.MakeSeed(), map[uint64]known{}
	for off := 0; off+sev.PageSize <= len(b); off += sev.PageSize {
		page := b[off : off+sev.PageSize]
		key := maphash.Bytes(seed, page)
		k, ok := seen[key]
		if !ok || !bytes.Equal(k.page, page) {
			k = known{page, sha512.Sum384(page)}
			seen[key] = k
		}
		d.Extend(sev.PageNormal, gpa+uint64(off), k.sum)
	}
}

// addSections adds the sections of SEV metadata in the table's order, which
// differs between builds (QEMU, snp_metadata_desc_to_page_type; EC2 adds CPUID
// pages last; GCE does not let zero pages be measured as such).
func (m *Measurement) addSections(sections []ovmf.Section) error {
	total := uint64(0)
	for _, s := range sections {
		total += uint64(s.Size)
	}
	if total > maxMemory {
		return fmt.Errorf("%w: the SEV metadata names %d bytes of memory, more than %d", ErrInputs, total,
			uint64(maxMemory))
	}
	var hashes, last bool
	for _, s := range sections {
		t := sev.PageZero
		switch s.Type {
		case ovmf.SectionMemory:
			if m.in.VMM == GCE {
				t = sev.PageUnmeasured
			}
		case ovmf.SectionSecrets:
			t = sev.PageSecrets
		case ovmf.SectionCPUID:
			if t = sev.PageCPUID; m.in.VMM == EC2 {
				last = true
				continue
			}
		case ovmf.SectionSVSMCAA:
		case ovmf.SectionKernelHashes:
			hashes = true
			if m.in.Kernel != nil {
				if err := m.addHashes(s); err != nil {
					return err
				}
				continue
			}
		default:
			return fmt.Errorf("%w: SEV metadata has a section of the unknown type %#x", ErrInputs, uint32(s.Type))
		}
		m.addSection(t, s)
	}
	for _, s := range sections {
		if last && s.Type == ovmf.SectionCPUID {
			m.addSection(sev.PageCPUID, s)
		}
	}
	if m.in.Kernel != nil && !hashes {
		return fmt.Errorf("%w: no SEV-SNP section for them", sev.ErrNoHashTable)
	}
	return nil
}

// maxMemory bounds what metadata may name; builds name some 200 KiB.
const maxMemory = 1 << 30

func (m *Measurement) addSection(t sev.PageType, s ovmf.Section) {
	for off := uint64(0); off < uint64(s.Size); off += sev.PageSize {
		m.snp.Extend(t, uint64(s.GPA)+off, [48]byte{})
	}
}

// addHashes adds the page with the kernel hash table, zero but for the table
// (QEMU, sev_snp_guest_prepare…, build_kernel_loader_hashes).
func (m *Measurement) addHashes(s ovmf.Section) error {
	area := m.in.Firmware.HashArea
	off := area.Base & (sev.PageSize - 1)
	if !area.Holds() || off+sev.HashTableSize > sev.PageSize {
		return fmt.Errorf("%w (base=%#x size=%#x)", sev.ErrNoHashTable, area.Base, area.Size)
	}
	if s.Size != sev.PageSize {
		return fmt.Errorf("%w: its section has %d bytes, must be one page", sev.ErrNoHashTable, s.Size)
	}
	var page [sev.PageSize]byte
	table := m.in.Kernel.Table()
	copy(page[off:], table[:])
	m.snp.Extend(sev.PageNormal, uint64(s.GPA), sha512.Sum384(page[:]))
	return nil
}

// AddVCPUs adds register pages, the boot processor's first. SEV has none.
func (m *Measurement) AddVCPUs(n int) error {
	if m.in.Technology == SEV {
		return nil
	}
	if m.pages == nil {
		boot, others, err := m.in.registers()
		if err != nil {
			return err
		}
		p := &vcpuPages{boot: boot.page(), others: others.page()}
		if m.in.Technology == SNP {
			p.bootHash, p.othersHash = sha512.Sum384(p.boot[:]), sha512.Sum384(p.others[:])
		}
		m.pages = p
	}
	for range n {
		page, sum := m.pages.others, &m.pages.othersHash
		if m.vcpus == 0 {
			page, sum = m.pages.boot, &m.pages.bootHash
		}
		if m.in.Technology == SNP {
			m.snp.Extend(sev.PageVMSA, sev.VMSAAddress, *sum)
		} else {
			m.sha.Write(page[:])
		}
		m.vcpus++
	}
	return nil
}

// With returns a copy without vCPUs for other registers than those that it was
// begun with. Nothing else of the inputs may differ; vCPUs must not have been added.
func (m *Measurement) With(in Inputs) *Measurement {
	c := *m
	c.in, c.pages = &in, nil
	if m.sha != nil {
		c.sha = clone(m.sha)
	}
	return &c
}

// Sum returns the digest as it stands.
func (m *Measurement) Sum() []byte {
	if m.in.Technology == SNP {
		return bytes.Clone(m.snp[:])
	}
	return m.sha.Sum(nil)
}

// RegisterPage returns the page that is measured for a vCPU, 4096 bytes.
func RegisterPage(in Inputs, vcpu int) ([]byte, error) {
	boot, others, err := in.registers()
	if err != nil {
		return nil, err
	}
	if vcpu == 0 {
		return boot.page()[:], nil
	}
	return others.page()[:], nil
}
