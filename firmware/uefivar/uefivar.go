// Package uefivar reads stores of authenticated UEFI variables, as they lie in images of firmware
// and in the files that QEMU keeps for them (OVMF_VARS.fd).
//
// Source: edk2, MdeModulePkg/Include/Guid/VariableFormat.h.
package uefivar

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"unicode/utf16"

	"github.com/vmlatch/vmlatch/firmware/guid"
)

// ErrFormat is wrapped by errors about files that hold no store, or one that does not fit.
var ErrFormat = errors.New("variable store")

// GUIDs of variables' name spaces (UEFI 2.10, sections 3.3 and 32.6.1), and of a store.
var (
	GUIDGlobal           = guid.MustParse("8be4df61-93ca-11d2-aa0d-00e098032b8c")
	GUIDImageSecurity    = guid.MustParse("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
	GUIDSecureBootEnable = guid.MustParse("f0a30bc7-af08-4556-99c4-001009c93a44")
	GUIDStore            = guid.MustParse("aaf32c78-947b-439a-a180-2e144ec37792")
)

// Variable is a variable that counts: deleted ones are left out.
type Variable struct {
	GUID       guid.GUID
	Name       string
	Attributes uint32
	Data       []byte
}

// Event is the variable as firmware measures it (TCG PC Client Platform Firmware Profile, section
// 10.4.2, UEFI_VARIABLE_DATA). One that does not exist is measured without data.
func (v *Variable) Event() []byte {
	name := utf16.Encode([]rune(v.Name))
	b := slices.Clone(v.GUID[:])
	b = binary.LittleEndian.AppendUint64(b, uint64(len(name)))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(v.Data)))
	for _, c := range name {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return append(b, v.Data...)
}

// Store is a list of variables.
type Store []Variable

// Find finds a variable; nil if there is none.
func (s Store) Find(space guid.GUID, name string) *Variable {
	i := slices.IndexFunc(s, func(v Variable) bool { return v.GUID == space && v.Name == name })
	if i < 0 {
		return nil
	}
	return &s[i]
}

// SecureBoot reports whether a platform key is there, which switches Secure Boot on (UEFI 2.10,
// section 32.3), and a user has not switched it off in the setup (edk2,
// SecurityPkg/Include/Guid/AuthenticatedVariableFormat.h: SecureBootEnable).
func (s Store) SecureBoot() bool {
	pk := s.Find(GUIDGlobal, "PK")
	enable := s.Find(GUIDSecureBootEnable, "SecureBootEnable")
	off := enable != nil && len(enable.Data) == 1 && enable.Data[0] == 0
	return pk != nil && len(pk.Data) > 0 && !off
}

// Offsets and sizes of the format.
const (
	storeHeader    = 28
	offFormat      = 20 // 0x5a
	offState       = 21 // 0xfe
	formatted      = 0x5a
	healthy        = 0xfe
	variableHeader = 60
	offAttributes  = 4
	offNameSize    = 36
	offDataSize    = 40
	offGUID        = 44
	variableStart  = 0x55aa
	added          = 0x3f // VAR_ADDED
	going          = 0x3e // with VAR_IN_DELETED_TRANSITION: counts until a newer one is there
	maxVariables   = 4096
)

// Read reads the first store in bytes. One without variables is not nil.
func Read(b []byte) (Store, error) {
	for rest := b; ; {
		at := bytes.Index(rest, GUIDStore[:])
		if at < 0 {
			return nil, fmt.Errorf("%w: the file holds no store", ErrFormat)
		}
		if rest = rest[at:]; len(rest) >= storeHeader && rest[offFormat] == formatted && rest[offState] == healthy {
			size := binary.LittleEndian.Uint32(rest[16:])
			if size < storeHeader || uint64(size) > uint64(len(rest)) {
				return nil, fmt.Errorf(
					"%w: it is cut off: it has %d bytes, and should have %d",
					ErrFormat,
					len(rest),
					size,
				)
			}
			return variables(rest[storeHeader:size])
		}
		rest = rest[len(GUIDStore):] // it stands elsewhere by chance
	}
}

func variables(b []byte) (list Store, err error) {
	le := binary.LittleEndian
	list = Store{}
	var old Store
	for at := 0; at+variableHeader <= len(b) && le.Uint16(b[at:]) == variableStart; {
		name, data := uint64(le.Uint32(b[at+offNameSize:])), uint64(le.Uint32(b[at+offDataSize:]))
		end := uint64(at) + variableHeader + name + data
		if end > uint64(len(b)) || name%2 != 0 {
			return nil, fmt.Errorf("%w: the variable at %#x does not fit", ErrFormat, at)
		}
		if len(list)+len(old) >= maxVariables {
			return nil, fmt.Errorf("%w: more than %d variables", ErrFormat, maxVariables)
		}
		text := b[at+variableHeader : at+variableHeader+int(name)]
		v := Variable{
			GUID: guid.GUID(b[at+offGUID : at+offGUID+16]), Name: text16(text),
			Attributes: le.Uint32(b[at+offAttributes:]), Data: b[at+variableHeader+int(name) : end],
		}
		switch b[at+2] {
		case added:
			list = append(list, v)
		case going:
			old = append(old, v)
		}
		at = int((end + 3) &^ 3)
	}
	for _, v := range old {
		if list.Find(v.GUID, v.Name) == nil {
			list = append(list, v)
		}
	}
	return list, nil
}

func text16(b []byte) string {
	var units []uint16
	for i := 0; i+1 < len(b); i += 2 {
		if c := binary.LittleEndian.Uint16(b[i:]); c != 0 {
			units = append(units, c)
		}
	}
	return string(utf16.Decode(units))
}
