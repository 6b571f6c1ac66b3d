// Package attr names the attributes of trust domains.
//
// Source: Intel, TDX Module ABI Reference Specification, publication 348551 ("TDX ABI").
package attr

import "fmt"

// Attributes are those of a trust domain (TDX ABI, TD_ATTRIBUTES; Linux,
// arch/x86/include/asm/shared/tdx.h).
type Attributes uint64

// Bits of TD_ATTRIBUTES.
const (
	Debug         Attributes = 1 << 0
	Untrusted     Attributes = 0xfe    // others of the group that makes a domain untrusted
	SEPTVEDisable Attributes = 1 << 28 // no exceptions that a host could force by taking pages away
	Migratable    Attributes = 1 << 29
	PKS           Attributes = 1 << 30
	KL            Attributes = 1 << 31
	TPA           Attributes = 1 << 62
	Perfmon       Attributes = 1 << 63
)

// Named is one that has a name.
type Named struct {
	Bit  Attributes
	Name string
}

// All are those that have a name, in the order of their bits.
func All() []Named {
	return []Named{
		{Debug, "debug"},
		{SEPTVEDisable, "sept-ve-disable"},
		{Migratable, "migratable"},
		{PKS, "pks"},
		{KL, "kl"},
		{TPA, "tpa"},
		{Perfmon, "perfmon"},
	}
}

// Words names the attributes; those without a name are a number.
func (a Attributes) Words() []string {
	words := []string{}
	for _, n := range All() {
		if a&n.Bit != 0 {
			words, a = append(words, n.Name), a&^n.Bit
		}
	}
	if a != 0 {
		words = append(words, fmt.Sprintf("%#x", uint64(a)))
	}
	return words
}
