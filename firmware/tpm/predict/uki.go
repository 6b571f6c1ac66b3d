package predict

import (
	"bytes"
	"debug/pe"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/authenticode"
)

// ukiSections are those that systemd-stub measures into PCR 11, in this order, whatever their order
// in the file (systemd, src/fundamental/uki.h). .pcrsig is not measured: it holds signatures of the
// value.
var ukiSections = []string{
	".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey",
}

// ukiChoices are sections of which the stub chooses some by the machine or the boot menu.
var ukiChoices = []string{".profile", ".dtbauto", ".hwids", ".efifw"}

// errChoices says that what is measured of a unified kernel image is chosen at its boot.
var errChoices = errors.New("the stub chooses at boot between the profiles or device trees of this image")

// ukiSection is a section of a unified kernel image.
type ukiSection struct {
	name string
	data []byte
}

// stub is what a version of systemd-stub measures: sections that it does not know are left out.
type stub struct {
	version int
	without []string
	untried bool // measures as the last that was tried, as far as is known
}

// magic begins the section by which a stub says its version (systemd, src/boot/efi/stub.c).
const magic = "#### LoaderInfo: systemd-stub "

// Versions of systemd-stub whose measurements are known.
const (
	stubOldest = 252
	stubNoName = 253 // which measured the first of the later sections is not known
	stubTried  = 257
)

// isUKI reports whether an image has a kernel inside.
func isUKI(image []byte) bool {
	if bytes.Contains(image, []byte(magic)) {
		return true
	}
	f, err := pe.NewFile(bytes.NewReader(image))
	if err != nil {
		return false // and firmware may read more than this reader
	}
	defer f.Close()
	return f.Section(".linux") != nil
}

// stubOf finds out which stub an image has.
func stubOf(image []byte) (*stub, error) {
	at := bytes.Index(image, []byte(magic))
	if at < 0 {
		return nil, errors.New("it does not say which version of systemd-stub it has")
	}
	s := &stub{}
	if _, err := fmt.Fscanf(bytes.NewReader(image[at+len(magic):]), "%d", &s.version); err != nil {
		return nil, errors.New("it does not say which version of systemd-stub it has")
	}
	switch {
	case s.version < stubOldest || s.version == stubNoName:
		return nil, fmt.Errorf("which sections systemd-stub %d measures is not known", s.version)
	case s.version == stubOldest:
		s.without = []string{".uname", ".sbat"}
	}
	s.untried = s.version > stubTried
	return s, nil
}

// sectionsOf reads the sections of a unified kernel image that are measured, in their order.
// Without a stub it reads all of them.
func sectionsOf(image []byte, by *stub) (list []ukiSection, err error) {
	f, err := pe.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", authenticode.ErrFormat, err)
	}
	defer f.Close()
	for _, name := range ukiChoices {
		if f.Section(name) != nil {
			return nil, errChoices
		}
	}
	for _, name := range ukiSections {
		s := f.Section(name)
		if s == nil || by != nil && slices.Contains(by.without, name) {
			continue
		}
		at, size := uint64(s.Offset), uint64(s.VirtualSize)
		raw := min(size, uint64(s.Size))
		if at+raw > uint64(len(image)) || size > uint64(len(image)) {
			return nil, fmt.Errorf("%w: section %s goes beyond its end", authenticode.ErrFormat, name)
		}
		data := image[at : at+raw]
		if raw < size {
			data = append(bytes.Clone(data), make([]byte, size-raw)...)
		}
		list = append(list, ukiSection{name, data})
	}
	if len(list) == 0 || list[0].name != ".linux" {
		return nil, fmt.Errorf(
			"%w: it has no section .linux, so it is not a unified kernel image",
			authenticode.ErrFormat,
		)
	}
	return list, nil
}

// phases are words by which systemd extends PCR 11 while a system comes up (systemd-pcrphase).
var phases = []string{"enter-initrd", "leave-initrd", "sysinit", "ready"}

// phaseWords are those that were measured once a phase is reached; none for "none".
func phaseWords(phase string) ([]string, error) {
	if phase == "" || phase == "none" {
		return nil, nil
	}
	for i, p := range phases {
		if p == phase {
			return phases[:i+1], nil
		}
	}
	return nil, fmt.Errorf("unknown phase %q: must be none, %s", phase, strings.Join(phases, ", "))
}
