// Package exchange holds the files that a host and a guest's owner pass to each
// other: the platform, the measurement and the secret packet. They are JSON with
// a schema, and each side takes them for hostile. Nothing in them is secret: the
// packet is encrypted for the platform.
package exchange

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/sev"
)

// MaxFile bounds a file of any kind; the largest, a packet, has some 22 KB.
const MaxFile = 64 << 10

// ErrFormat is wrapped by errors about a file's form.
var ErrFormat = errors.New("malformed")

func decode(b []byte, what, schema string, to any, got *string) error {
	b = bytes.TrimPrefix(b, []byte("\uFEFF")) // which editors put there
	if bytes.HasPrefix(b, []byte{0xff, 0xfe}) || bytes.HasPrefix(b, []byte{0xfe, 0xff}) {
		return fmt.Errorf("%s: %w: is text in UTF-16, as PowerShell's > writes it: save it as UTF-8", what, ErrFormat)
	}
	if err := json.Unmarshal(b, to); err != nil {
		return fmt.Errorf("%s: %w: %v", what, ErrFormat, err)
	}
	if *got != schema {
		return fmt.Errorf("%s: %w: schema is %q, must be %q", what, ErrFormat, *got, schema)
	}
	return nil
}

// CheckName reports a name that cannot be a VM's.
func CheckName(name string) error {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	if name == "" || len(name) > 63 ||
		strings.ContainsFunc(name, func(r rune) bool { return !strings.ContainsRune(letters+"._-", r) }) ||
		strings.IndexByte(letters, name[0]) < 0 {
		return fmt.Errorf(
			"name %q: must be 1 to 63 letters, digits, dots, dashes and underscores, beginning with a letter or digit",
			name,
		)
	}
	return nil
}

// Platform is what an owner needs from a host to make a session (vmlatch.platform/1).
type Platform struct {
	Schema          string `json:"schema"`
	Emulated        bool   `json:"emulated"`
	PDH             []byte `json:"pdh"`        // certificate, base64
	CertChain       []byte `json:"cert-chain"` // PEK, OCA, CEK
	CPU0ID          []byte `json:"cpu0-id,omitempty"`
	CBitPos         int    `json:"cbitpos"`
	ReducedPhysBits int    `json:"reduced-phys-bits"`
}

// PlatformSchema names the format of platforms.
const PlatformSchema = "vmlatch.platform/1"

// ParsePlatform reads a platform's file. Nothing in it is to be believed before
// its certificates verify.
func ParsePlatform(b []byte) (*Platform, error) {
	var p Platform
	return &p, decode(b, "platform file", PlatformSchema, &p, &p.Schema)
}

// Measurement is what an owner needs to check a launch (vmlatch.measurement/1).
type Measurement struct {
	Schema      string     `json:"schema"`
	Name        string     `json:"name"`
	Technology  string     `json:"technology"`
	Emulated    bool       `json:"emulated"`
	Firmware    sev.Build  `json:"firmware"`
	Policy      sev.Policy `json:"policy"`
	Measurement []byte     `json:"measurement"` // MAC and nonce, 48 bytes, base64
	Claims      *Claims    `json:"claims,omitempty"`
}

// MeasurementSchema names the format of measurements.
const MeasurementSchema = "vmlatch.measurement/1"

// ParseMeasurement reads a measurement's file.
func ParseMeasurement(b []byte) (*Measurement, error) {
	var m Measurement
	if err := decode(b, "measurement", MeasurementSchema, &m, &m.Schema); err != nil {
		return nil, err
	}
	if _, err := sev.ParseMeasurement(m.Measurement); err != nil {
		return nil, fmt.Errorf("measurement: %w: %v", ErrFormat, err)
	}
	if err := CheckName(m.Name); err != nil { // it will be printed
		return nil, fmt.Errorf("measurement: %w: %v", ErrFormat, err)
	}
	return &m, nil
}

// Claims are hashes of what the host says it loaded. They prove nothing; they
// help an owner to find out why a measurement differs.
type Claims struct {
	Firmware [32]byte
	Kernel   *sev.KernelHashes
}

type claimsJSON struct {
	Firmware string `json:"firmware-sha256"`
	Kernel   string `json:"kernel-sha256,omitempty"`
	Initrd   string `json:"initrd-sha256,omitempty"`
	Cmdline  string `json:"cmdline-sha256,omitempty"`
}

// MarshalJSON writes the hashes in hex.
func (c Claims) MarshalJSON() ([]byte, error) {
	j := claimsJSON{Firmware: hex.EncodeToString(c.Firmware[:])}
	if k := c.Kernel; k != nil {
		j.Kernel, j.Initrd = hex.EncodeToString(k.Kernel[:]), hex.EncodeToString(k.Initrd[:])
		j.Cmdline = hex.EncodeToString(k.Cmdline[:])
	}
	return json.Marshal(j)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (c *Claims) UnmarshalJSON(b []byte) error {
	var j claimsJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	fields := []struct {
		text string
		to   []byte
	}{{j.Firmware, c.Firmware[:]}}
	if j.Kernel != "" {
		c.Kernel = &sev.KernelHashes{}
		fields = append(fields, []struct {
			text string
			to   []byte
		}{{j.Kernel, c.Kernel.Kernel[:]}, {j.Initrd, c.Kernel.Initrd[:]}, {j.Cmdline, c.Kernel.Cmdline[:]}}...)
	}
	for _, f := range fields {
		raw, err := hex.DecodeString(f.text)
		if err != nil || len(raw) != len(f.to) {
			return fmt.Errorf("claims: %q is not a SHA-256 in hex", f.text)
		}
		copy(f.to, raw)
	}
	return nil
}

// Packet is an encrypted secret for one launch (vmlatch.packet/1).
type Packet struct {
	Schema string  `json:"schema"`
	Header []byte  `json:"header"` // 52 bytes
	Secret []byte  `json:"secret"` // encrypted, a multiple of 16 bytes
	GPA    *uint64 `json:"gpa,omitempty"`
}

// PacketSchema names the format of packets.
const PacketSchema = "vmlatch.packet/1"

// Limits of a packet (SEV API, chapter 6.6).
const (
	packetHeader = 52
	maxSecret    = 16 << 10
)

// ParsePacket reads a packet's file.
func ParsePacket(b []byte) (*Packet, error) {
	var p Packet
	if err := decode(b, "secret packet", PacketSchema, &p, &p.Schema); err != nil {
		return nil, err
	}
	switch {
	case len(p.Header) != packetHeader:
		return nil, fmt.Errorf("secret packet: %w: header of %d bytes, must be %d", ErrFormat, len(p.Header),
			packetHeader)
	case len(p.Secret) == 0 || len(p.Secret)%16 != 0 || len(p.Secret) > maxSecret:
		return nil, fmt.Errorf("secret packet: %w: secret of %d bytes, must be a multiple of 16 up to %d", ErrFormat,
			len(p.Secret), maxSecret)
	}
	return &p, nil
}
