package predict

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/vmlatch/vmlatch/firmware/guid"
)

// Tables are what a QEMU passes to firmware as ACPI and SMBIOS tables, by the names of their fw_cfg
// files: [TableFiles]. They depend on the version of QEMU, the memory, the processors and the
// devices.
type Tables map[string][]byte

// Names of fw_cfg files.
const (
	fileLoader = "etc/table-loader"
	fileRSDP   = "etc/acpi/rsdp"
	fileACPI   = "etc/acpi/tables"
	fileTPMLog = "etc/tpm/log"
	fileSMBIOS = "etc/smbios/smbios-tables"
	tpmLogSize = 64 << 10
)

// TableFiles are the names of the files that firmware measures, in whole or in part.
func TableFiles() []string { return []string{fileLoader, fileRSDP, fileACPI, fileSMBIOS} }

// TablesSchema names files of tables.
const TablesSchema = "vmlatch.tables/1"

// TablesFile is a file of tables, as "vmlatch plan --tables" writes it and "latchkey pcrs" reads
// it.
type TablesFile struct {
	Schema string `json:"schema"` // [TablesSchema]
	QEMU   string `json:"qemu"`   // its version
	Files  Tables `json:"files"`
}

// errTables is wrapped by errors about tables.
var errTables = errors.New("the tables of QEMU")

// acpi are the files that firmware measures as ACPI's: the loader's script, then each file that it
// allocates (QEMU, hw/acpi/bios-linker-loader.c; edk2, OvmfPkg/Library/AcpiPlatformLib).
func (t Tables) acpi() (list [][]byte, err error) {
	const entry, nameSize, allocate = 128, 56, 1
	script := t[fileLoader]
	if len(script) == 0 || len(script)%entry != 0 {
		return nil, fmt.Errorf("%w: %s is missing, or cut off", errTables, fileLoader)
	}
	list = append(list, script)
	for ; len(script) > 0; script = script[entry:] {
		if binary.LittleEndian.Uint32(script) != allocate {
			continue
		}
		name, _, _ := bytes.Cut(script[4:4+nameSize], []byte{0})
		switch b, ok := t[string(name)]; {
		case string(name) == fileTPMLog:
			list = append(list, make([]byte, tpmLogSize))
		case ok:
			list = append(list, b)
		default:
			return nil, fmt.Errorf("%w: %s is missing", errTables, name)
		}
	}
	return list, nil
}

// structure is one of SMBIOS (DMTF DSP0134, section 6.1).
type structure struct {
	header  []byte // the formatted area
	strings [][]byte
}

func (s *structure) kind() byte { return s.header[0] }

func (s *structure) bytes() []byte {
	b := slices.Clone(s.header)
	for _, text := range s.strings {
		b = append(append(b, text...), 0)
	}
	if len(s.strings) == 0 {
		b = append(b, 0)
	}
	return append(b, 0)
}

// blank makes the string that a field names into spaces, and the field zero: what identifies one
// machine is not measured (edk2, MdeModulePkg/Universal/SmbiosMeasurementDxe).
func (s *structure) blank(field int) {
	if field >= len(s.header) {
		return
	}
	if n := int(s.header[field]); n > 0 && n <= len(s.strings) {
		s.strings[n-1] = bytes.Repeat([]byte{' '}, len(s.strings[n-1]))
	}
	s.header[field] = 0
}

func (s *structure) zero(from, size int) {
	if from+size <= len(s.header) {
		clear(s.header[from : from+size])
	}
}

const typeEnd = 127

func structures(b []byte) (list []structure, err error) {
	for len(b) > 0 {
		if len(b) < 4 || int(b[1]) < 4 || int(b[1]) > len(b) {
			return nil, fmt.Errorf("%w: a structure of SMBIOS is cut off", errTables)
		}
		s := structure{header: slices.Clone(b[:b[1]])}
		b = b[b[1]:]
		for {
			text, rest, ok := bytes.Cut(b, []byte{0})
			if !ok {
				return nil, fmt.Errorf("%w: the strings of a structure of SMBIOS have no end", errTables)
			}
			b = rest
			if len(text) == 0 {
				break
			}
			s.strings = append(s.strings, slices.Clone(text))
		}
		if len(s.strings) == 0 && len(b) > 0 && b[0] == 0 { // two zeros where there is none
			b = b[1:]
		}
		list = append(list, s)
	}
	return list, nil
}

// smbios are the tables as firmware measures them: with a structure about itself, and without what
// identifies one machine.
func (t Tables) smbios(vendor, version, date string) ([]byte, error) {
	raw, ok := t[fileSMBIOS]
	if !ok {
		return nil, fmt.Errorf("%w: %s is missing", errTables, fileSMBIOS)
	}
	list, err := structures(raw)
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(s structure) bool { return s.kind() == typeEnd })
	if !slices.ContainsFunc(list, func(s structure) bool { return s.kind() == 0 }) {
		list = append(list, structure{
			header: []byte{
				0, 26, 0, 0, 1, 2, 0, 0xe8, 3, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0x1c, 0, 0, 0xff, 0xff, 0, 0,
			},
			strings: [][]byte{[]byte(vendor), []byte(version), []byte(date)},
		})
	}
	list = append(list, structure{header: []byte{typeEnd, 4, 0xff, 0xfe}})
	var out []byte
	for i := range list {
		filter(&list[i])
		out = append(out, list[i].bytes()...)
	}
	return out, nil
}

// filter takes out what identifies one machine, and what changes from boot to boot.
func filter(s *structure) {
	switch kind := s.kind(); {
	case kind == 11 || kind == 15 || kind == 18 || kind == 31 || kind == 33 || kind >= 128: // not measured
		clear(s.header[4:])
		for i := range s.strings {
			s.strings[i] = bytes.Repeat([]byte{0}, len(s.strings[i]))
		}
	case kind == 1:
		s.blank(7)    // serial number
		s.zero(8, 17) // UUID, wake-up type
	case kind == 2:
		s.blank(7)
		s.blank(8)  // asset tag
		s.blank(10) // location
	case kind == 3:
		s.blank(7)
		s.blank(8)
	case kind == 4:
		for _, field := range []int{0x20, 0x21, 0x22} { // serial, asset, part
			s.blank(field)
		}
		s.zero(0x11, 1) // voltage
		s.zero(0x16, 2) // current speed
		s.zero(0x23, 3) // cores and threads
		s.zero(0x2a, 6)
	case kind == 17:
		for _, field := range []int{0x18, 0x19, 0x1a} {
			s.blank(field)
		}
	case kind == 22: // a battery
		s.blank(7)
		s.zero(0x10, 4)
	case kind == 23: // resets
		s.zero(7, 2)
	case kind == 39: // a power supply
		for _, field := range []int{8, 9, 10} {
			s.blank(field)
		}
	}
}

// bootOption is a variable Boot#### of firmware for a program in its own volume (UEFI 2.10, section
// 3.1.3, EFI_LOAD_OPTION).
func bootOption(attributes uint32, name string, volume, file guid.GUID) []byte {
	le := binary.LittleEndian
	path := slices.Concat([]byte{4, 7, 20, 0}, volume[:], []byte{4, 6, 20, 0}, file[:], []byte{0x7f, 0xff, 4, 0})
	b := le.AppendUint16(le.AppendUint32(nil, attributes), uint16(len(path)))
	return slices.Concat(b, wide(name), []byte{0, 0}, path)
}

// bootOptions are those of a machine that boots a kernel of -kernel, with the variable BootOrder
// before them; nil for firmware whose options are not known.
func (f *Firmware) bootOptions() (list [][]byte) {
	const active, hidden, app = 1, 8, 0x100
	switch {
	case f.setup:
		list = [][]byte{
			bootOption(active|hidden|app, "BootManagerMenuApp", f.dxe, guidMenuApp),
			bootOption(active|app, "EFI Firmware Setup", f.dxe, guidUiApp),
		}
	case f.uiApp:
		list = [][]byte{bootOption(active|hidden|app, "UiApp", f.dxe, guidUiApp)}
	default:
		return nil
	}
	var order []byte
	for i := range list {
		order = binary.LittleEndian.AppendUint16(order, uint16(i))
	}
	return append([][]byte{order}, list...)
}
