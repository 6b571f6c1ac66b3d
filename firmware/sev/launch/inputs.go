package launch

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"sync"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/sev"
)

// Technology is how the guest is protected.
type Technology string

// Technologies.
const (
	SEV   Technology = "sev"
	SEVES Technology = "sev-es"
	SNP   Technology = "sev-snp"
)

// DefaultFeatures are the sev_features of SNP guests: SNP active (APM volume 2,
// appendix B, offset 3B0h). SEV-ES guests have none.
const DefaultFeatures = 1

// MaxVCPUs is the most that is calculated.
const MaxVCPUs = 4096

// Layout is what of a firmware image a launch depends on.
type Layout struct {
	Image []byte // the whole image; nil if only its digest is known
	// PagesDigest is the SNP digest after the firmware's pages. If it is given it
	// stands for them, and Image may be the image's end only.
	PagesDigest *sev.SNPDigest
	Sections    []ovmf.Section // of the SEV metadata, in order; nil without
	ResetEIP    uint32         // where application processors start; 0 without
	HashArea    sev.HashArea

	// What the image gives alone is calculated once.
	shaOnce, pagesOnce sync.Once
	sha                hash.Cloner
	pages              sev.SNPDigest
}

// imageSHA256 is SHA-256 after the image, to go on from.
func (l *Layout) imageSHA256() hash.Cloner {
	l.shaOnce.Do(func() {
		l.sha = sha256.New().(hash.Cloner)
		l.sha.Write(l.Image)
	})
	return clone(l.sha)
}

// pagesDigest is the SNP digest after the firmware's pages.
func (l *Layout) pagesDigest() sev.SNPDigest {
	if l.PagesDigest != nil {
		return *l.PagesDigest
	}
	l.pagesOnce.Do(func() { l.pages = PagesDigest(l.Image) })
	return l.pages
}

func clone(h hash.Cloner) hash.Cloner {
	c, err := h.Clone()
	if err != nil {
		panic(err) // SHA-256 of the standard library can be cloned
	}
	return c
}

// LayoutOf reads an image.
func LayoutOf(img *ovmf.Image) (*Layout, error) {
	l := &Layout{Image: img.Bytes}
	var err error
	if l.Sections, err = img.SEVMetadata(); err != nil {
		return nil, err
	}
	if l.ResetEIP, _, err = img.ResetEIP(); err != nil {
		return nil, err
	}
	area, _, err := img.HashArea()
	l.HashArea = sev.HashArea(area)
	return l, err
}

// SVSM is a secure VM service module that starts before the firmware, in the
// layout before IGVM.
type SVSM struct {
	Image    *ovmf.Image // it ends in a GUIDed table as firmware does
	VarsSize int         // bytes of the variable store, which moves the module
}

// guidSVSMInfo marks the entry with the module's start, relative to its image.
var guidSVSMInfo = sev.MustGUID("a789a612-0597-4c4b-a49f-cbb1fe9d1ddd")

// Inputs are what a launch digest covers.
type Inputs struct {
	Technology Technology
	Firmware   *Layout
	Kernel     *sev.KernelHashes // nil when kernel-hashes is off or there is no -kernel
	VCPUs      int               // SEV-ES and SEV-SNP
	CPU        Signature
	Features   uint64 // sev_features
	VMM        VMM
	Profile    Profile
	SVSM       *SVSM // SEV-SNP only
}

// Errors about inputs for which no platform gives a digest.
var (
	ErrInputs  = errors.New("launch digest")
	ErrNoReset = fmt.Errorf("%w: the firmware has no SEV-ES reset block, so it cannot start on a second processor",
		ErrInputs)
	ErrNoMetadata = fmt.Errorf("%w: the firmware has no SEV metadata, so it cannot run under SEV-SNP", ErrInputs)
	ErrAlignment  = fmt.Errorf("%w: the firmware's size is not a multiple of 4096 bytes", ErrInputs)
)

func (in *Inputs) check() error {
	f := in.Firmware
	if f == nil || len(f.Image) == 0 && f.PagesDigest == nil {
		return sev.ErrNoFirmware
	}
	switch in.Technology {
	case SEV:
		return nil
	case SEVES, SNP:
	default:
		return fmt.Errorf("%w: technology %q", ErrInputs, in.Technology)
	}
	switch {
	case in.VCPUs < 1 || in.VCPUs > MaxVCPUs:
		return fmt.Errorf("%w: %d vCPUs, must be 1 to %d", ErrInputs, in.VCPUs, MaxVCPUs)
	case in.SVSM != nil && in.Technology != SNP:
		return fmt.Errorf("%w: an SVSM needs SEV-SNP", ErrInputs)
	case in.SVSM == nil && f.ResetEIP == 0 && in.VCPUs > 1:
		return ErrNoReset
	case in.Technology == SNP && in.SVSM == nil && len(f.Sections) == 0:
		return ErrNoMetadata
	case in.Technology == SNP && in.SVSM == nil && in.VMM == QEMU && ovmf.AcceptsSNP(f.Sections) != "":
		return fmt.Errorf("%w: QEMU refuses the firmware: %s", ErrInputs, ovmf.AcceptsSNP(f.Sections))
	case in.Technology == SNP && len(f.Image)%sev.PageSize != 0 && f.PagesDigest == nil:
		return ErrAlignment
	}
	return nil
}

// registers returns the registers of the boot processor and of the others.
func (in *Inputs) registers() (boot, others registers, err error) {
	boot = registers{eip: resetVector, signature: in.CPU, features: in.Features, vmm: in.VMM, profile: in.Profile}
	if in.SVSM != nil {
		boot.svsm = true
		if boot.eip, err = in.SVSM.start(in.Firmware); err != nil {
			return boot, boot, err
		}
		return boot, boot, nil
	}
	others = boot
	others.eip = in.Firmware.ResetEIP
	return boot, others, nil
}

// gpa is where the module lies: below the variable store, which lies below the
// firmware.
func (s *SVSM) gpa(f *Layout) (uint64, error) {
	size := uint64(len(f.Image)) + uint64(len(s.Image.Bytes)) + uint64(s.VarsSize)
	if s.VarsSize < 0 || size > 1<<32 || size%sev.PageSize != 0 {
		return 0, fmt.Errorf("%w: firmware, variables and SVSM of %d bytes in all do not fit below 4 GiB in pages",
			ErrInputs, size)
	}
	return 1<<32 - size, nil
}

func (s *SVSM) start(f *Layout) (uint32, error) {
	gpa, err := s.gpa(f)
	if err != nil {
		return 0, err
	}
	d, ok := s.Image.Entry(guidSVSMInfo)
	if !ok || len(d) < 4 {
		return 0, fmt.Errorf("%w: the SVSM image has no entry that says where it starts", ErrInputs)
	}
	return uint32(gpa) + binary.LittleEndian.Uint32(d), nil
}
