package sev

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/nearest"
)

// SNPPolicy is the policy of an SEV-SNP guest (SNP ABI, chapter 4.3, table 9).
// Bits 7:0 are the least ABI minor version, bits 15:8 the least major version.
type SNPPolicy uint64

// Bits of an SNP policy.
const (
	SNPPolicySMT              SNPPolicy = 1 << 16 // simultaneous multithreading is allowed
	SNPPolicyReserved         SNPPolicy = 1 << 17 // must be one
	SNPPolicyMigrate          SNPPolicy = 1 << 18 // a migration agent is allowed
	SNPPolicyDebug            SNPPolicy = 1 << 19 // the host may read the guest's memory
	SNPPolicySingleSocket     SNPPolicy = 1 << 20
	SNPPolicyCXL              SNPPolicy = 1 << 21 // CXL memory is allowed
	SNPPolicyAES256           SNPPolicy = 1 << 22 // AES 256 XTS is needed
	SNPPolicyNoRAPL           SNPPolicy = 1 << 23 // RAPL must be off
	SNPPolicyCiphertextHiding SNPPolicy = 1 << 24 // ciphertext hiding must be on
	// SNPPolicyDefault is QEMU's: SMT allowed, no debugging.
	SNPPolicyDefault = SNPPolicySMT | SNPPolicyReserved
)

var snpPolicyNames = []struct {
	bit  SNPPolicy
	name string
}{
	{SNPPolicySMT, "smt"},
	{SNPPolicyMigrate, "migrate"},
	{SNPPolicyDebug, "debug"},
	{SNPPolicySingleSocket, "single-socket"},
	{SNPPolicyCXL, "cxl"},
	{SNPPolicyAES256, "aes-256-xts"},
	{SNPPolicyNoRAPL, "no-rapl"},
	{SNPPolicyCiphertextHiding, "ciphertext-hiding"},
}

// ParseSNPPolicy reads a number ("0x30000") or words joined by commas ("smt,abi=1.55").
// The bit that must be one is added to words.
func ParseSNPPolicy(s string) (SNPPolicy, error) {
	if n, err := strconv.ParseUint(strings.TrimSpace(s), 0, 64); err == nil {
		p := SNPPolicy(n)
		return p, p.Check()
	}
	p := SNPPolicyReserved
	for word := range strings.SplitSeq(s, ",") {
		bit, err := parseSNPWord(strings.TrimSpace(word))
		if err != nil {
			return 0, err
		}
		p |= bit
	}
	return p, p.Check()
}

func parseSNPWord(word string) (SNPPolicy, error) {
	if abi, ok := strings.CutPrefix(word, "abi="); ok {
		major, minor, ok := ParseVersion(abi)
		if !ok {
			return 0, fmt.Errorf("policy: %q: the ABI version is written abi=MAJOR.MINOR", word)
		}
		return SNPPolicy(major)<<8 | SNPPolicy(minor), nil
	}
	var names []string
	for _, p := range snpPolicyNames {
		if p.name == word {
			return p.bit, nil
		}
		names = append(names, p.name)
	}
	return 0, fmt.Errorf("policy: %w", nearest.Unknown("word", word, append(names, "abi=MAJOR.MINOR", "a number")))
}

// Check reports a policy that no platform accepts.
func (p SNPPolicy) Check() error {
	if p&SNPPolicyReserved == 0 || p>>26 != 0 {
		return fmt.Errorf("policy: %#x: bit 17 must be set, and none above 25", uint64(p))
	}
	return nil
}

// Admits reports whether firmware of a build is new enough for the policy.
func (p SNPPolicy) Admits(b Build) bool {
	return b.AtLeast(uint8(p>>8), uint8(p))
}

func (p SNPPolicy) String() string {
	var words []string
	for _, n := range snpPolicyNames {
		if p&n.bit != 0 {
			words = append(words, n.name)
		}
	}
	if p&0xffff != 0 {
		words = append(words, fmt.Sprintf("abi=%d.%d", uint8(p>>8), uint8(p)))
	}
	return fmt.Sprintf("%#x (%s)", uint64(p), strings.Join(words, ","))
}

// Covers reports whether a policy is at least as strict as another: it allows
// nothing that the other does not allow, demands all that it demands, and asks
// for firmware as new.
func (p SNPPolicy) Covers(least SNPPolicy) bool {
	const allow = SNPPolicySMT | SNPPolicyMigrate | SNPPolicyDebug | SNPPolicyCXL
	const version = SNPPolicy(0xffff)
	demand := ^(allow | version)
	return p&allow&^least == 0 && p&least&demand == least&demand && p&version >= least&version
}

// Debuggable reports whether the host may read and write the guest's memory.
func (p SNPPolicy) Debuggable() bool { return p&SNPPolicyDebug != 0 }
