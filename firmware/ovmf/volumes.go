package ovmf

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/ffs"
	"github.com/vmlatch/vmlatch/firmware/guid"
)

// GUIDIGVMParameters marks the entry that points to IGVM parameter metadata, of
// builds since edk2 2026.08.
var GUIDIGVMParameters = guid.MustParse("784fa70e-3176-4677-8a20-04b68699e374")

// Volumes finds the firmware volumes of an image.
func (img *Image) Volumes() []ffs.Place { return ffs.Find(img.Bytes) }

// ResetVector returns the last 16 bytes: what a processor executes first.
func (img *Image) ResetVector() []byte { return img.Bytes[max(0, len(img.Bytes)-16):] }

// Names of GUIDed table entries, as people say.
var entryNames = map[guid.GUID]string{
	GUIDResetBlock:     "SEV-ES reset block",
	GUIDHashTable:      "kernel hash area",
	GUIDSecretArea:     "launch secret area",
	GUIDSEVMetadata:    "SEV metadata offset",
	GUIDTDXMetadata:    "TDX metadata offset",
	GUIDIGVMParameters: "IGVM parameter metadata",
}

// Name is what an entry is for, or its GUID.
func (e Entry) Name() string {
	if n := entryNames[e.GUID]; n != "" {
		return n
	}
	return e.GUID.String()
}

// Text is what an entry's data say, in words; their bytes in hexadecimal if their meaning is
// not known, or their length is not the one it should be.
func (e Entry) Text() string {
	le := binary.LittleEndian
	switch area := e.GUID == GUIDHashTable || e.GUID == GUIDSecretArea; {
	case area && len(e.Data) == 8 && le.Uint64(e.Data) == 0:
		return "none"
	case area && len(e.Data) == 8:
		return fmt.Sprintf("%#x, %#x bytes", le.Uint32(e.Data), le.Uint32(e.Data[4:]))
	case e.GUID == GUIDResetBlock && len(e.Data) == 4:
		return fmt.Sprintf("EIP %#x", le.Uint32(e.Data))
	case (e.GUID == GUIDSEVMetadata || e.GUID == GUIDTDXMetadata || e.GUID == GUIDIGVMParameters) && len(e.Data) == 4:
		return fmt.Sprintf("%#x from the end", le.Uint32(e.Data))
	}
	return hex.EncodeToString(e.Data)
}

var sectionNames = map[SectionType]string{
	SectionMemory:       "memory",
	SectionSecrets:      "secrets",
	SectionCPUID:        "CPUID",
	SectionSVSMCAA:      "SVSM calling area",
	SectionKernelHashes: "kernel hashes",
}

func (t SectionType) String() string {
	if n := sectionNames[t]; n != "" {
		return n
	}
	return fmt.Sprintf("type %#x", uint32(t))
}

// Types of TDX sections (Intel, TDX Virtual Firmware Design Guide, table 11-3).
var tdxNames = []string{
	"BFV", "CFV", "TD HOB", "temporary memory", "permanent memory", "payload", "payload parameter",
}

// TypeName is what a TDX section is for.
func (s TDXSection) TypeName() string {
	if int(s.Type) < len(tdxNames) {
		return tdxNames[s.Type]
	}
	return fmt.Sprintf("type %d", s.Type)
}
