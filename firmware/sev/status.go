package sev

import "fmt"

// Status is a status code of the SEV firmware (SEV API, chapter 5.2, table 5).
// Its text is the sentence that QEMU and Linux print for it.
type Status uint32

// Status codes (SEV API, chapter 5.2, table 5).
const (
	StatusOK                   Status = 0x00
	StatusInvalidPlatformState Status = 0x01
	StatusInvalidGuestState    Status = 0x02
	StatusInvalidConfig        Status = 0x03
	StatusInvalidLength        Status = 0x04
	StatusAlreadyOwned         Status = 0x05
	StatusInvalidCertificate   Status = 0x06
	StatusPolicyFailure        Status = 0x07
	StatusInactive             Status = 0x08
	StatusInvalidAddress       Status = 0x09
	StatusBadSignature         Status = 0x0a
	StatusBadMeasurement       Status = 0x0b
	StatusASIDOwned            Status = 0x0c
	StatusInvalidASID          Status = 0x0d
	StatusWBINVDRequired       Status = 0x0e
	StatusDFFlushRequired      Status = 0x0f
	StatusInvalidGuest         Status = 0x10
	StatusInvalidCommand       Status = 0x11
	StatusActive               Status = 0x12
	StatusHardwarePlatform     Status = 0x13
	StatusHardwareUnsafe       Status = 0x14
	StatusUnsupported          Status = 0x15
	StatusInvalidParam         Status = 0x16
	StatusResourceLimit        Status = 0x17
	StatusSecureDataInvalid    Status = 0x18
)

var statusTable = []struct {
	code       Status
	name, text string
}{
	{StatusOK, "SUCCESS", ""},
	{StatusInvalidPlatformState, "INVALID_PLATFORM_STATE", "Platform state is invalid"},
	{StatusInvalidGuestState, "INVALID_GUEST_STATE", "Guest state is invalid"},
	{StatusInvalidConfig, "INVALID_CONFIG", "Platform configuration is invalid"},
	{StatusInvalidLength, "INVALID_LENGTH", "Buffer too small"},
	{StatusAlreadyOwned, "ALREADY_OWNED", "Platform is already owned"},
	{StatusInvalidCertificate, "INVALID_CERTIFICATE", "Certificate is invalid"},
	{StatusPolicyFailure, "POLICY_FAILURE", "Policy is not allowed"},
	{StatusInactive, "INACTIVE", "Guest is not active"},
	{StatusInvalidAddress, "INVALID_ADDRESS", "Invalid address"},
	{StatusBadSignature, "BAD_SIGNATURE", "Bad signature"},
	{StatusBadMeasurement, "BAD_MEASUREMENT", "Bad measurement"},
	{StatusASIDOwned, "ASID_OWNED", "ASID is already owned"},
	{StatusInvalidASID, "INVALID_ASID", "Invalid ASID"},
	{StatusWBINVDRequired, "WBINVD_REQUIRED", "WBINVD is required"},
	{StatusDFFlushRequired, "DFFLUSH_REQUIRED", "DF_FLUSH is required"},
	{StatusInvalidGuest, "INVALID_GUEST", "Guest handle is invalid"},
	{StatusInvalidCommand, "INVALID_COMMAND", "Invalid command"},
	{StatusActive, "ACTIVE", "Guest is active"},
	{StatusHardwarePlatform, "HWERROR_PLATFORM", "Hardware error"},
	{StatusHardwareUnsafe, "HWERROR_UNSAFE", "Hardware unsafe"},
	{StatusUnsupported, "UNSUPPORTED", "Feature not supported"},
	{StatusInvalidParam, "INVALID_PARAM", "Invalid parameter"},
	{StatusResourceLimit, "RESOURCE_LIMIT", "Required firmware resource depleted"},
	{StatusSecureDataInvalid, "SECURE_DATA_INVALID", "Part-specific integrity check failure"},
}

// Statuses returns every code of the table, in order.
func Statuses() []Status {
	codes := make([]Status, len(statusTable))
	for i, s := range statusTable {
		codes[i] = s.code
	}
	return codes
}

// Name is the code's name in the specification, such as BAD_MEASUREMENT.
func (s Status) Name() string {
	if int(s) < len(statusTable) {
		return statusTable[s].name
	}
	return fmt.Sprintf("STATUS_%#x", uint32(s))
}

// Text is the sentence that QEMU prints for the code; empty for success.
func (s Status) Text() string {
	if int(s) < len(statusTable) {
		return statusTable[s].text
	}
	return "unknown error"
}

func (s Status) Error() string {
	return fmt.Sprintf("SEV firmware: %s (fw_error %d, %s)", s.Text(), uint32(s), s.Name())
}
