package launch

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/nearest"
)

// Signature is what CPUID Fn0000_0001_EAX says of a processor. A vCPU starts with
// it in RDX, so register pages contain it.
type Signature uint32

// SignatureOf makes a signature (AMD, APM volume 3, CPUID Fn0000_0001_EAX).
func SignatureOf(family, model, stepping uint) Signature {
	extended := uint(0)
	if family > 0xf {
		family, extended = 0xf, family-0xf
	}
	return Signature(extended<<20 | model>>4<<16 | family<<8 | model&0xf<<4 | stepping&0xf)
}

// families are the CPU models of QEMU that SEV runs on, by the name before the
// version (QEMU, target/i386/cpu.c, builtin_x86_defs, up to 11.1). Versions of a
// model share its signature.
var families = map[string]struct {
	signature Signature
	versions  int
}{
	"EPYC":       {SignatureOf(23, 1, 2), 5},
	"EPYC-Rome":  {SignatureOf(23, 49, 0), 5},
	"EPYC-Milan": {SignatureOf(25, 1, 1), 4},
	"EPYC-Genoa": {SignatureOf(25, 17, 0), 3},
	"EPYC-Turin": {SignatureOf(26, 0, 0), 2},
}

// epycIBPB is the old name of EPYC-v2.
const epycIBPB = "EPYC-IBPB"

// ParseCPU returns a model's signature. It takes QEMU's names, such as EPYC-v4 or
// EPYC-Milan; the model "host" has none of its own.
func ParseCPU(name string) (Signature, error) {
	if name == epycIBPB {
		name = "EPYC"
	}
	base := name
	if i := strings.LastIndex(name, "-v"); i >= 0 {
		base = name[:i]
		f, ok := families[base]
		if v, err := strconv.Atoi(name[i+2:]); ok && (err != nil || v < 1 || v > f.versions) {
			return 0, fmt.Errorf("CPU model %q: %s has versions 1 to %d", name, base, f.versions)
		}
	}
	if f, ok := families[base]; ok {
		return f.signature, nil
	}
	if name == "host" {
		return 0, fmt.Errorf("CPU model %q: its signature is the host's own; give that as a number", name)
	}
	return 0, nearest.Unknown("CPU model", name, CPUs())
}

// CPUs returns the names of the models, without versions.
func CPUs() []string { return slices.Sorted(maps.Keys(families)) }

// NameOf returns a model that has the signature; "" if none is known.
func (s Signature) NameOf() string {
	for _, name := range CPUs() {
		if families[name].signature == s {
			return name
		}
	}
	return ""
}

func (s Signature) String() string {
	if n := s.NameOf(); n != "" {
		return fmt.Sprintf("%s (%#x)", n, uint32(s))
	}
	return fmt.Sprintf("%#x", uint32(s))
}
