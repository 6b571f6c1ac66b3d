package predict

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"

	"github.com/vmlatch/vmlatch/firmware/ffs"
	"github.com/vmlatch/vmlatch/firmware/guid"
	"github.com/vmlatch/vmlatch/firmware/uefivar"
)

// Errors about firmware.
var (
	ErrNoTPM   = errors.New("this firmware has no modules for a TPM 2.0: it measures nothing")
	ErrDamaged = errors.New("the firmware's volumes cannot be read")
)

// GUIDs of modules (edk2, their INF files).
var (
	guidTcg2Pei     = guid.MustParse("a0c98b77-cba5-4bb8-993b-4af6ce33ece4")
	guidTcg2Dxe     = guid.MustParse("fdff263d-5f68-4591-87ba-b768f445a9af")
	guidSecureBoot  = guid.MustParse("f0e6a44f-7195-41c3-ac64-54f202cd0a21") // SecureBootConfigDxe
	guidSMBIOS      = guid.MustParse("d27fed59-abb4-4fed-bead-2a878c7e4a7e") // SmbiosMeasurementDxe
	guidPlatform    = guid.MustParse("4110465d-5ff3-4f4b-b580-24ed0d06747a") // SmbiosPlatformDxe
	guidBootManager = guid.MustParse("6d33944a-ec75-4855-a54d-809c75241f6c") // BdsDxe
	guidUiApp       = guid.MustParse("462caa21-7614-4503-836e-8ab6f4662331")
	guidMenuApp     = guid.MustParse("eec25bdc-67f2-4d95-b1d5-f81b2039d11d") // BootManagerMenuApp
)

// style is where a firmware puts initrd= in a kernel's load options.
type style int

const (
	styleUnknown style = iota
	stylePrefix
	styleSuffix
)

// Firmware is what of a firmware decides what it measures.
type Firmware struct {
	Version       string // as measured; "" for builds without one
	SecureBoot    bool   // it has the code for it
	Volumes       [][]byte
	Variables     uefivar.Store // in the image itself; nil if it holds none
	dxe           guid.GUID     // name of the volume whose modules are boot options
	options       style
	rawKernel     bool // it takes a kernel as the file is, where QEMU offers that
	measuresACPI  bool
	measuresTable bool // SMBIOS
	vendor, date  string
	setup         bool // boot options as since edk2 2025
	uiApp         bool // boot options as before
}

// ReadFirmware reads an image, of code alone or with its variables.
func ReadFirmware(image []byte) (*Firmware, error) { return FirmwareIn(image, ffs.Read(image)) }

// FirmwareIn does the same for an image whose volumes were read already, as unpacking them takes
// long.
func FirmwareIn(image []byte, list []*ffs.Volume) (*Firmware, error) {
	f := &Firmware{}
	if s, err := uefivar.Read(image); err == nil {
		f.Variables = s
	}
	var tcgPei, tcgDxe *ffs.File
	for path, file := range ffs.Files(list) {
		within := path[len(path)-1]
		if file.Type == ffs.FileVolume && len(file.Volumes()) >= 2 && f.Volumes == nil {
			for _, v := range file.Volumes() {
				if v.Damage != nil {
					return nil, fmt.Errorf("%w: %w", ErrDamaged, v.Damage)
				}
				f.Volumes = append(f.Volumes, v.Bytes)
			}
		}
		switch file.GUID {
		case guidTcg2Pei:
			tcgPei = file
		case guidTcg2Dxe:
			tcgDxe = file
		case guidSecureBoot:
			f.SecureBoot = true
		case guidSMBIOS:
			f.measuresTable = true
		case guidPlatform:
			f.vendor, f.date = aboutItself(file.Leaf(ffs.SectionPE))
		case guidUiApp:
			f.dxe, f.uiApp = within.Name, true
		case guidBootManager:
			code := file.Leaf(ffs.SectionPE)
			f.setup = bytes.Contains(code, wide("EFI Firmware Setup"))
			switch prefix := bytes.Contains(code, []byte("initrd=initrd \x00")); {
			case prefix:
				f.options = stylePrefix
			case bytes.Contains(code, []byte(" initrd=initrd\x00")):
				f.options = styleSuffix
			}
		}
		if code := file.Leaf(ffs.SectionPE); code != nil {
			f.rawKernel = f.rawKernel || bytes.Contains(code, []byte("etc/boot/\x00"))
			f.measuresACPI = f.measuresACPI || bytes.Contains(code, []byte("ACPI DATA\x00"))
		}
	}
	if tcgPei == nil || tcgDxe == nil || len(f.Volumes) == 0 {
		for _, v := range ffs.All(list) {
			if v.Damage != nil {
				return nil, fmt.Errorf("%w: %w", ErrDamaged, v.Damage)
			}
		}
		return nil, ErrNoTPM
	}
	code := tcgPei.Leaf(ffs.SectionPE)
	if code == nil {
		code = tcgPei.Leaf(ffs.SectionTE)
	}
	f.Version = longest(code)
	return f, nil
}

// texts are those in UTF-16 among code, of three characters or more.
func texts(code []byte) (list []string) {
	const shortest = 3
	for i := 0; i+1 < len(code); i += 2 {
		var b []byte
		for i+1 < len(code) && code[i] >= ' ' && code[i] < 0x7f && code[i+1] == 0 {
			b = append(b, code[i])
			i += 2
		}
		if len(b) >= shortest && i+1 < len(code) && code[i] == 0 && code[i+1] == 0 {
			list = append(list, string(b))
		}
	}
	return list
}

// longest is the longest text in code, which in Tcg2Pei is the version; "" if there is none.
func longest(code []byte) (text string) {
	for _, t := range texts(code) {
		if len(t) > len(text) {
			text = t
		}
	}
	return text
}

var isDate = regexp.MustCompile(`^\d\d/\d\d/\d{4}$`)

// aboutItself are vendor and date in the module that describes the firmware in SMBIOS. Builds
// without them have the module's own words, which count then.
func aboutItself(code []byte) (vendor, date string) {
	const noVendor, noDate = "unknown", "02/02/2022"
	vendor, date = noVendor, noDate
	for _, t := range texts(code) {
		switch {
		case t == noVendor || t == noDate:
		case isDate.MatchString(t):
			date = t
		case vendor == noVendor || len(t) > len(vendor):
			vendor = t
		}
	}
	return vendor, date
}

// wide is a text in UTF-16LE, each byte of it as a character.
func wide(s string) []byte {
	b := make([]byte, 0, 2*len(s))
	for i := range len(s) {
		b = append(b, s[i], 0)
	}
	return b
}

// seen are the first measured volumes of firmware whose boots were looked at, by SHA-256: whether
// it is measured as it lies in the image. The modules of others may write to their own data
// before, and then the value depends on the machine.
var seen = map[string]bool{
	// Debian 2026.08+ds-2: OVMF.fd and OVMF_CODE_4M.fd; secboot; AmdSev.
	"10e48f005bc9f46830c4596b9ab6f8d0b98427f08e17d6d0e6eef582a7b12512": true,
	"7dc26c2a9bf8da46a397aa48736acb6c5af6960e03975bc20e425fb5f59c76fc": false,
	"86dfa77cb380ca0152711c13c34bb9d360fea1e73e6ca45e87b2b4f3f8527fa6": false,
	// Debian 2022.11-6+deb12u2: OVMF.fd and OVMF_CODE.fd; OVMF_CODE_4M.fd.
	"18e2c1cc4960c2694c162e8e756fbf467aaeceee7dbfe1e1dd919ffb2cd9a9d2": false,
	"471281a7d197d12ac61a810e5150b9b5ddc47be78ef0c24af7a8192c81b3a808": false,
}

// unchanged reports whether the first volume is measured as it lies in the image, if that is known.
func (f *Firmware) unchanged() (yes, known bool) {
	sum := sha256.Sum256(f.Volumes[0])
	yes, known = seen[hex.EncodeToString(sum[:])]
	return yes, known
}
