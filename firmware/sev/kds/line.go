package kds

import "strings"

// Line is a line of processors that share a root of trust.
type Line string

// Lines of processors. Bergamo and Siena are of Genoa's (KDS, chapter 4).
const (
	Milan Line = "Milan"
	Genoa Line = "Genoa"
	Turin Line = "Turin"
)

// Lines are all that there are.
func Lines() []Line { return []Line{Milan, Genoa, Turin} }

// LineOf returns the line of a processor by its CPUID family and model, both combined.
func LineOf(family, model uint8) (Line, bool) {
	switch {
	case family == 0x19 && model <= 0x0f:
		return Milan, true
	case family == 0x19 && (model>>4 == 0x1 || model>>4 == 0xa):
		return Genoa, true
	case family == 0x1a && model <= 0x1f:
		return Turin, true
	}
	return "", false
}

// lineNamed returns the line that a name begins with: product names may have a stepping
// behind it, as "Milan-B0" has.
func lineNamed(name string) (Line, bool) {
	base, _, _ := strings.Cut(name, "-")
	for _, l := range Lines() {
		if string(l) == base {
			return l, true
		}
	}
	return "", false
}

// ParseLine reads the name of a line, in any letter case.
func ParseLine(name string) (Line, bool) {
	for _, l := range Lines() {
		if strings.EqualFold(string(l), name) {
			return l, true
		}
	}
	return "", false
}

// HWIDSize is the length of a chip's ID in bytes.
func (l Line) HWIDSize() int {
	if l == Turin {
		return 8
	}
	return 64
}
