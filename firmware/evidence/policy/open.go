package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
)

// Open says what a policy leaves open, a sentence each. line is the guest's command line.
func (f *File) Open(line string) []string {
	open := []string{}
	add := func(format string, args ...any) { open = append(open, fmt.Sprintf(format, args...)) }
	if f.Emulated != nil {
		add("emulated: evidence under the test root protects nothing")
	}
	if t := f.SNP; t != nil {
		bound, err := sev.ParseSNPPolicy(cmp.Or(strings.Join(t.Policy, ","), "smt"))
		if err != nil { // which was said before
			bound = 0
		}
		if bound&sev.SNPPolicyMigrate != 0 {
			add("sev-snp: a migration agent of the host's may move the guest (policy: migrate)")
		}
		if len(t.Policy) == 0 || bound&sev.SNPPolicySMT == 0 {
			add(
				"sev-snp: guests whose own policy allows SMT are refused, and QEMU's default does (policy = [\"smt\"])",
			)
		}
		if t.HostACPI == acceptACPI {
			add("sev-snp: the host's ACPI code runs in the guest's kernel (host-acpi)")
		}
		if t.Digests != nil && f.Guest != nil {
			add("sev-snp: [guest] plays no part: digests takes its place")
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
		for _, s := range t.AcceptTCB {
			if s == string(collateral.OutOfDate) || s == string(collateral.OutOfDateConfigurationNeeded) {
				add("tdx: platforms are accepted that are known to be vulnerable (accept-tcb: %s)", s)
			}
		}
		if slices.Contains(t.Attributes, "migratable") {
			add("tdx: a migration TD of the host's may move the guest (attributes: migratable)")
		}
		if t.HostACPI == acceptACPI {
			add("tdx: the host's ACPI code runs in the guest's kernel (host-acpi)")
		}
		if t.MinEvaluation == 0 {
			add("tdx: collateral of an old TCB evaluation is accepted while it is valid (min-evaluation)")
		}
	}
	if f.VTPM != nil {
		add("vtpm: the host can have these secrets: the TPM is its own, and it reads the guest's memory")
		if n := f.VTPM.PCRs; len(n) > 0 && !slices.Contains(n, 9) && !slices.Contains(n, 11) {
			add("vtpm: any command line and initrd is accepted (pcrs lacks 9)")
		}
		if n := f.VTPM.PCRs; len(n) > 0 && !slices.Contains(n, 4) && !slices.Contains(n, 11) {
			add("vtpm: any kernel is accepted (pcrs lacks 4)")
		}
	}
	f.openTolerance(add)
	f.openSecrets(line, add)
	return open
}

// CheckWords refuses a guest whose command line names another policy, or another broker than one
// of these keys, if any is given: it would ask in vain.
func (f *File) CheckWords(line string, keys ...exchange.Key) error {
	if !exchange.HasWords(line) {
		return nil
	}
	w, err := exchange.ParseWords(line)
	switch {
	case err != nil:
		return f.errorf("guest.cmdline", "%v", err)
	case w.Name != f.Name:
		return f.errorf("guest.cmdline", "latch.name=%s is not the policy's name, %s", w.Name, f.Name)
	case len(keys) > 0 && !slices.Contains(keys, w.Key):
		return f.errorf("guest.cmdline", "latch.key=%v is not this broker's key, %v", w.Key, keys[0])
	case w.Host && f.VTPM == nil:
		return f.errorf("guest.cmdline", "latch.trust=host is for policies with [vtpm]")
	case !w.Host && f.VTPM != nil:
		return f.errorf("guest.cmdline", "latch.trust=host is missing: the guest would not ask by its TPM")
	case w.KEM != exchange.Hybrid && !slices.Contains(f.KEM, w.KEM):
		return f.errorf("guest.cmdline", "latch.kem=%s is not allowed (kem)", w.KEM)
	}
	return nil
}

// openTolerance says how long vendors' lists may be used after their dates.
func (f *File) openTolerance(add func(string, ...any)) {
	for _, t := range []struct{ key, value string }{
		{"crl-stale", f.Tolerate.CRLStale}, {"collateral-stale", f.Tolerate.CollateralStale},
	} {
		if d, err := days(t.value); err == nil && d > 0 {
			add(
				"what vendors have revoked or demoted in the %s after a list's end may be missed (tolerate.%s)",
				t.value,
				t.key,
			)
		}
	}
}

// openSecrets says where a secret is open to a weaker technology than another.
func (f *File) openSecrets(line string, add func(string, ...any)) {
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
	if f.Guest != nil && f.Guest.Kernel != "" {
		if !exchange.HasWords(line) {
			add("secrets: the guest's command line names no broker (latch.key, latch.name, latch.broker)")
		}
		for _, door := range exchange.Doors(line, exchange.AnyInitrd) {
			add("guest.cmdline: %s", door)
		}
	}
	for _, r := range f.Release {
		if r.LUKSHeader == exchange.Unchecked {
			add("release %s: the host may put a disk without encryption in its place (luks-header)", r.Secret)
		}
	}
}
