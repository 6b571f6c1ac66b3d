package policy

import (
	"fmt"
	"slices"
	"strings"
)

// Words of the guest's command line that name its broker and its policy.
const wordName = "latch.name="

// Open says what a policy leaves open, a sentence each. line is the guest's command line.
func (f *File) Open(line string) []string {
	open := []string{}
	add := func(format string, args ...any) { open = append(open, fmt.Sprintf(format, args...)) }
	if f.Emulated != nil {
		add("emulated: evidence under the test root protects nothing")
	}
	if t := f.SNP; t != nil {
		if !slices.Contains(t.Policy, "smt") {
			add(
				"sev-snp: guests whose own policy allows SMT are refused, and QEMU's default does (policy = [\"smt\"])",
			)
		}
		if t.Chips == "any" {
			add("sev-snp: any chip is accepted: the key of a single one, anywhere, can forge every report")
		}
		if t.Debug {
			add("sev-snp: the host may read and write the guest's memory (debug = true)")
		}
		if t.VLEK {
			add("sev-snp: the provider, which holds the VLEK, can sign reports of machines that you do not know")
		}
		if t.Provisional {
			add("sev-snp: the host may roll its firmware back (provisional = true)")
		}
		if t.AliasCheck != nil && !*t.AliasCheck {
			add("sev-snp: memory may be aliased by manipulated modules (alias-check = false)")
		}
		if t.CRL != nil && !*t.CRL {
			add("sev-snp: revoked authorities are not noticed (crl = false)")
		}
		if t.MinTCB == nil {
			add("sev-snp: firmware of any age is accepted (min-tcb)")
		} else {
			add("sev-snp: processors without a min-tcb of their line are refused")
		}
	}
	if t := f.TDX; t != nil {
		if t.Chips == "any" {
			add("tdx: any platform is accepted, or any of a family: the key of a single one can forge every quote")
		}
		if t.Debug {
			add("tdx: the host may read and write the guest's memory (debug = true)")
		}
		if t.ServiceTD {
			add("tdx: a service TD may move the guest (service-td = true)")
		}
		if t.MinEvaluation == 0 {
			add("tdx: collateral of an old TCB evaluation is accepted while it is valid (min-evaluation)")
		}
	}
	f.openSecrets(add)
	for word := range strings.FieldsSeq(line) {
		if name, ok := strings.CutPrefix(word, wordName); ok && name != f.Name {
			add("guest.cmdline: %s%s is not the policy's name, %s", wordName, name, f.Name)
		}
	}
	return open
}

// openSecrets says where a secret is open to a weaker technology than another.
func (f *File) openSecrets(add func(string, ...any)) {
	if len(f.Release) == 0 {
		return
	}
	strong := f.SNP != nil || f.TDX != nil
	if f.SEV != nil && (strong || f.SEVES != nil) {
		add("secrets are open to SEV, which protects neither registers nor the integrity of memory," +
			" though stronger technologies are there")
	} else if f.SEVES != nil && strong {
		add("secrets are open to SEV-ES, which does not protect the integrity of memory," +
			" though stronger technologies are there")
	}
	for _, r := range f.Release {
		if r.LUKSHeader == "unchecked" {
			add("release %s: the host may put a disk without encryption in its place (luks-header)", r.Secret)
		}
	}
}
