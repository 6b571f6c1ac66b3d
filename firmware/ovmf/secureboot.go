package ovmf

import (
	"bytes"
	"encoding/binary"

	"github.com/vmlatch/vmlatch/firmware/guid"
)

// guidVariableStore marks a store of authenticated variables (edk2,
// MdeModulePkg/Include/Guid/VariableFormat.h, gEfiAuthenticatedVariableGuid).
var guidVariableStore = guid.MustParse("aaf32c78-947b-439a-a180-2e144ec37792")

// Offsets and sizes of the store's format.
const (
	storeHeader    = 28
	variableHeader = 60
	offNameSize    = 36
	offDataSize    = 40
	variableStart  = 0x55aa
	variableAdded  = 0x3f // VAR_ADDED: it is valid
)

// platformKey is the name of the variable that switches Secure Boot on (UEFI 2.10, section 32.3).
var platformKey = []byte("P\x00K\x00\x00\x00")

// HasPlatformKey reports whether the image has a platform key in its own store of variables:
// its Secure Boot is on, with the keys that are there.
func (img *Image) HasPlatformKey() bool {
	for b := img.Bytes; ; {
		at := bytes.Index(b, guidVariableStore[:])
		if at < 0 {
			return false
		}
		if b = b[at+len(guidVariableStore):]; hasPlatformKey(b) { // it may stand elsewhere by chance
			return true
		}
	}
}

// hasPlatformKey reads a store behind its GUID.
func hasPlatformKey(b []byte) bool {
	le := binary.LittleEndian
	for at := storeHeader - len(guidVariableStore); at+variableHeader <= len(b) && le.Uint16(b[at:]) == variableStart; {
		name, data := uint64(le.Uint32(b[at+offNameSize:])), uint64(le.Uint32(b[at+offDataSize:]))
		end := uint64(at) + variableHeader + name + data
		if end > uint64(len(b)) {
			return false
		}
		valid := b[at+2] == variableAdded && data > 0
		if valid && bytes.Equal(b[at+variableHeader:at+variableHeader+int(name)], platformKey) {
			return true
		}
		at = int((end + 3) &^ 3)
	}
	return false
}
