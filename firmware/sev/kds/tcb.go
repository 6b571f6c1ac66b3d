package kds

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// TCB are the security versions of a platform's firmware. They are compared one by one, and
// never as one number (SNP ABI, chapter 2.2; KDS, chapter 3).
type TCB struct {
	FMC        uint8 `json:"fmc"` // Turin only
	BootLoader uint8 `json:"bootloader"`
	TEE        uint8 `json:"tee"`
	SNP        uint8 `json:"snp"`
	Microcode  uint8 `json:"microcode"`
}

// ParseTCB reads a TCB_VERSION as it lies in a report, whose layout depends on the line.
func ParseTCB(raw uint64, l Line) TCB {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], raw)
	if l == Turin {
		return TCB{FMC: b[0], BootLoader: b[1], TEE: b[2], SNP: b[3], Microcode: b[7]}
	}
	return TCB{BootLoader: b[0], TEE: b[1], SNP: b[6], Microcode: b[7]}
}

// Raw is the TCB_VERSION.
func (t TCB) Raw(l Line) uint64 {
	b := [8]byte{t.BootLoader, t.TEE, 0, 0, 0, 0, t.SNP, t.Microcode}
	if l == Turin {
		b = [8]byte{t.FMC, t.BootLoader, t.TEE, t.SNP, 0, 0, 0, t.Microcode}
	}
	return binary.LittleEndian.Uint64(b[:])
}

// Component is one of a TCB's versions.
type Component struct {
	Name string
	of   func(*TCB) *uint8
}

// Components are a TCB's versions, in the order of the boot.
func Components() []Component {
	return []Component{
		{"fmc", func(t *TCB) *uint8 { return &t.FMC }},
		{"bootloader", func(t *TCB) *uint8 { return &t.BootLoader }},
		{"tee", func(t *TCB) *uint8 { return &t.TEE }},
		{"snp", func(t *TCB) *uint8 { return &t.SNP }},
		{"microcode", func(t *TCB) *uint8 { return &t.Microcode }},
	}
}

// In is the component's version in a TCB.
func (c Component) In(t TCB) uint8 { return *c.of(&t) }

// Set changes the component's version in a TCB.
func (c Component) Set(t *TCB, v uint8) { *c.of(t) = v }

// Below returns the first component that is below another TCB's; its name is "" if none is.
func (t TCB) Below(least TCB) Component {
	for _, c := range Components() {
		if c.In(t) < c.In(least) {
			return c
		}
	}
	return Component{}
}

// Text lists the versions that a line has.
func (t TCB) Text(l Line) string {
	var parts []string
	for _, c := range Components() {
		if c.Name != "fmc" || l == Turin {
			parts = append(parts, fmt.Sprintf("%s %d", c.Name, c.In(t)))
		}
	}
	return strings.Join(parts, ", ")
}
