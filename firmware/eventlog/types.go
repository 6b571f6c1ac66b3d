package eventlog

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// Type is the type of an event (TCG, table 27).
type Type uint32

// Types of events.
const (
	PostCode                Type = 0x00000001
	NoAction                Type = 0x00000003 // extends nothing
	Separator               Type = 0x00000004
	Action                  Type = 0x00000005
	EventTag                Type = 0x00000006
	CRTMContents            Type = 0x00000007
	CRTMVersion             Type = 0x00000008
	PlatformConfigFlags     Type = 0x0000000a
	TableOfDevices          Type = 0x0000000b
	IPL                     Type = 0x0000000d
	VariableDriverConfig    Type = 0x80000001
	VariableBoot            Type = 0x80000002
	BootServicesApplication Type = 0x80000003
	BootServicesDriver      Type = 0x80000004
	RuntimeServicesDriver   Type = 0x80000005
	GPT                     Type = 0x80000006
	EFIAction               Type = 0x80000007
	FirmwareBlob            Type = 0x80000008
	HandoffTables           Type = 0x80000009
	FirmwareBlob2           Type = 0x8000000a
	HandoffTables2          Type = 0x8000000b
	VariableBoot2           Type = 0x8000000c
	VariableAuthority       Type = 0x800000e0
)

var typeNames = map[Type]string{
	PostCode: "EV_POST_CODE", NoAction: "EV_NO_ACTION", Separator: "EV_SEPARATOR", Action: "EV_ACTION",
	EventTag: "EV_EVENT_TAG", CRTMContents: "EV_S_CRTM_CONTENTS", CRTMVersion: "EV_S_CRTM_VERSION",
	PlatformConfigFlags: "EV_PLATFORM_CONFIG_FLAGS", TableOfDevices: "EV_TABLE_OF_DEVICES", IPL: "EV_IPL",
	VariableDriverConfig:    "EV_EFI_VARIABLE_DRIVER_CONFIG",
	VariableBoot:            "EV_EFI_VARIABLE_BOOT",
	BootServicesApplication: "EV_EFI_BOOT_SERVICES_APPLICATION",
	BootServicesDriver:      "EV_EFI_BOOT_SERVICES_DRIVER",
	RuntimeServicesDriver:   "EV_EFI_RUNTIME_SERVICES_DRIVER",
	GPT:                     "EV_EFI_GPT_EVENT", EFIAction: "EV_EFI_ACTION",
	FirmwareBlob: "EV_EFI_PLATFORM_FIRMWARE_BLOB", HandoffTables: "EV_EFI_HANDOFF_TABLES",
	FirmwareBlob2: "EV_EFI_PLATFORM_FIRMWARE_BLOB2", HandoffTables2: "EV_EFI_HANDOFF_TABLES2",
	VariableBoot2: "EV_EFI_VARIABLE_BOOT2", VariableAuthority: "EV_EFI_VARIABLE_AUTHORITY",
}

func (t Type) String() string {
	if n := typeNames[t]; n != "" {
		return n
	}
	return fmt.Sprintf("event type %#x", uint32(t))
}

// Says is what the data of an event say it is of, in words; "" if they are not text. It is only
// true if a digest is the hash of the data: see [Event.Hashes].
func (e *Event) Says() string {
	data := e.Data
	switch e.Type {
	case VariableDriverConfig, VariableBoot, VariableBoot2, VariableAuthority: // TCG, UEFI_VARIABLE_DATA
		const header = 32
		if len(data) < header {
			return ""
		}
		size := binary.LittleEndian.Uint64(data[16:])
		if size > uint64(len(data)-header)/2 {
			return ""
		}
		data = data[header : header+2*size]
		fallthrough
	case IPL, CRTMVersion:
		if wide, ok := narrow(data); ok {
			data = wide
		}
	case EventTag: // TCG_PCClientTaggedEvent: number, size, text
		if len(data) < 8 {
			return ""
		}
		data = data[8:]
	}
	text := strings.TrimRight(string(data), "\x00")
	if len(text) > 100 || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
		return ""
	}
	return text
}

// narrow reads ASCII in UTF-16LE.
func narrow(b []byte) ([]byte, bool) {
	out := make([]byte, 0, len(b)/2)
	for i := 0; i+1 < len(b); i += 2 {
		if b[i+1] != 0 {
			return nil, false
		}
		out = append(out, b[i])
	}
	return out, len(b)%2 == 0 && len(b) > 0
}
