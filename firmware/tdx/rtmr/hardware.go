package rtmr

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/tdx/ccel"
)

// HardwareSchema names the format of profiles of RTMR0.
const HardwareSchema = "latch-rtmr0/1"

// MaxHardware is the largest profile that is read, in bytes.
const MaxHardware = 256 << 10

// ErrHardware is wrapped by errors about files that are not profiles of RTMR0.
var ErrHardware = errors.New("not a profile of RTMR0")

// Hardware is the exact sequence of measurements that a boot may have in RTMR0, with holes where
// the host's ACPI tables were measured. Which measurements are holes is fixed when the profile is
// made, from a boot that the owner trusts.
type Hardware struct {
	Schema string  `json:"schema"`
	Events []Fixed `json:"events"`
}

// Fixed is a measurement, or a hole.
type Fixed struct {
	Digest string `json:"digest,omitempty"` // hex; "" for a hole
	Hole   string `json:"hole,omitempty"`   // what the host may put there
	What   string `json:"what"`             // for people
}

// acpiData is what edk2 calls the ACPI tables that it measures (OvmfPkg,
// Library/AcpiPlatformLib, QemuFwCfgAcpi.c).
const (
	acpiData         = "ACPI DATA"
	evPlatformConfig = 0x8000000a // EV_PLATFORM_CONFIG_FLAGS
	holeACPI         = "acpi"
)

// NewHardware makes a profile of a trusted boot's log.
func NewHardware(l *ccel.Log) *Hardware {
	h := &Hardware{Schema: HardwareSchema, Events: []Fixed{}}
	for i := range l.Events {
		e := &l.Events[i]
		switch {
		case e.Register != 0:
		case e.Type == evPlatformConfig && bytes.Equal(e.Data, []byte(acpiData)):
			h.Events = append(h.Events, Fixed{Hole: holeACPI, What: acpiData})
		default:
			h.Events = append(
				h.Events,
				Fixed{Digest: hex.EncodeToString(e.Digest[:]), What: fmt.Sprintf("type %#x", e.Type)},
			)
		}
	}
	return h
}

// ParseHardware reads a profile.
func ParseHardware(b []byte) (*Hardware, error) {
	if len(b) > MaxHardware {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrHardware, len(b), MaxHardware)
	}
	var h Hardware
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&h); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrHardware, err)
	}
	if d.More() {
		return nil, fmt.Errorf("%w: there is something behind it", ErrHardware)
	}
	if h.Schema != HardwareSchema || len(h.Events) == 0 {
		return nil, fmt.Errorf("%w: schema is %q, with %d events", ErrHardware, h.Schema, len(h.Events))
	}
	for i, e := range h.Events {
		d, err := hex.DecodeString(e.Digest)
		if fixed := e.Hole == "" && len(d) == 48; err != nil || !fixed && (e.Hole != holeACPI || len(d) > 0) {
			return nil, fmt.Errorf("%w: event %d is neither a digest nor a hole for ACPI", ErrHardware, i)
		}
	}
	return &h, nil
}

// Match is a refusal unless a log, which was replayed against its quote, has exactly the
// profile's measurements in RTMR0.
func (h *Hardware) Match(l *ccel.Log) error {
	n := 0
	for i := range l.Events {
		e := &l.Events[i]
		if e.Register != 0 {
			continue
		}
		if n == len(h.Events) {
			return refusal.New(refusal.RTMR).Because("RTMR0 has more than the %d measurements of its profile", n)
		}
		if want := h.Events[n]; want.Hole != holeACPI && want.Digest != hex.EncodeToString(e.Digest[:]) {
			return refusal.New(refusal.RTMR).
				Because("measurement %d of RTMR0 differs from the profile (%s)", n+1, want.What)
		}
		n++
	}
	if n != len(h.Events) {
		return refusal.New(refusal.RTMR).Because("RTMR0 has %d measurements, and its profile %d", n, len(h.Events))
	}
	return nil
}
