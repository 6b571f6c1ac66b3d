package rtmr

import (
	"bytes"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

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
	evPlatformConfig = 0x0a // EV_PLATFORM_CONFIG_FLAGS (TCG, table 27)
	holeACPI         = "acpi"
)

// separator is what firmware measures before it measures what it boots by: the hash of four
// zero bytes (TCG, EV_SEPARATOR).
var separator = sha512.Sum384(make([]byte, 4))

// NewHardware makes a profile of a trusted boot's log. What an event calls itself is not
// measured, so the place of the holes follows from a digest: they are the measurements behind
// the first separator, and nothing else may pass for ACPI tables.
func NewHardware(l *ccel.Log) (*Hardware, error) {
	h := &Hardware{Schema: HardwareSchema, Events: []Fixed{}}
	behind := 0 // the first separator: its number, counted from 1
	for i := range l.Events {
		e := &l.Events[i]
		switch {
		case e.Register != 0:
			continue
		case e.Type == evPlatformConfig && string(e.Data) == acpiData:
			h.Events = append(h.Events, Fixed{Hole: holeACPI, What: acpiData})
		default:
			h.Events = append(h.Events,
				Fixed{Digest: hex.EncodeToString(e.Digest[:]), What: fmt.Sprintf("type %#x", e.Type)})
		}
		if behind == 0 && e.Digest == separator {
			behind = len(h.Events)
		}
	}
	if l.Foreign > 0 {
		return nil, fmt.Errorf(
			"%d of its measurements are not of a trust domain's registers: it may be the log of a TPM",
			l.Foreign,
		)
	}
	if len(h.Events) == 0 {
		return nil, errors.New("it has no measurement in RTMR0")
	}
	return h, h.checkHoles(behind)
}

// checkHoles is an error unless the holes, if there are any, are those behind a measurement,
// which is counted from 1.
func (h *Hardware) checkHoles(behind int) error {
	holes := h.Holes()
	if len(holes) == 0 || behind > 0 && slices.Equal(holes, []int{behind + 1, behind + 2, behind + 3}) {
		return nil
	}
	return fmt.Errorf("measurements %v of RTMR0 call themselves %q: firmware measures the three ACPI files of QEMU"+
		" behind the first separator, and nowhere else", holes, acpiData)
}

// Holes are the measurements that are left open, counted from 1.
func (h *Hardware) Holes() (list []int) {
	for i, e := range h.Events {
		if e.Hole != "" {
			list = append(list, i+1)
		}
	}
	return list
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
	behind := slices.IndexFunc(h.Events, func(e Fixed) bool { return e.Digest == hex.EncodeToString(separator[:]) })
	if err := h.checkHoles(behind + 1); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrHardware, err)
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
