package sev

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/nearest"
)

// Policy is a guest policy: what the host may do to the guest, and the oldest
// firmware that may run it (SEV API, chapter 3, table 2).
type Policy uint32

// The bits of a guest policy (SEV API, chapter 3, table 2). Bits 23:16 are the
// least API major version, bits 31:24 the least minor version.
const (
	PolicyNoDebug      Policy = 1 << 0 // debug commands are refused
	PolicyNoKeySharing Policy = 1 << 1 // no other guest may share the key
	PolicyES           Policy = 1 << 2 // register state is encrypted: SEV-ES
	PolicyNoSend       Policy = 1 << 3 // no migration
	PolicyDomain       Policy = 1 << 4 // migration only inside the domain
	PolicySEV          Policy = 1 << 5 // migration only to SEV platforms

	policyReserved Policy = 0xffc0
)

// PolicyDefault forbids what a host has no need for: reading the guest's memory, sharing
// its key with another guest, and sending it to another platform.
const PolicyDefault = PolicyNoDebug | PolicyNoKeySharing | PolicyNoSend

var policyNames = []struct {
	bit  Policy
	name string
}{
	{PolicyNoDebug, "no-debug"},
	{PolicyNoKeySharing, "no-key-sharing"},
	{PolicyES, "es"},
	{PolicyNoSend, "no-send"},
	{PolicyDomain, "domain"},
	{PolicySEV, "sev"},
}

// PolicyNames returns the words that ParsePolicy takes, in the order of their bits.
func PolicyNames() []string {
	names := make([]string, len(policyNames))
	for i, p := range policyNames {
		names[i] = p.name
	}
	return names
}

// ParsePolicy reads a policy given as a number ("0x3") or as words joined by
// commas ("no-debug,no-key-sharing,api=1.51").
func ParsePolicy(s string) (Policy, error) {
	if n, err := strconv.ParseUint(strings.TrimSpace(s), 0, 32); err == nil {
		p := Policy(n)
		return p, p.Check()
	}
	var p Policy
	for word := range strings.SplitSeq(s, ",") {
		bits, err := parsePolicyWord(strings.TrimSpace(word))
		if err != nil {
			return 0, err
		}
		p |= bits
	}
	return p, p.Check()
}

func parsePolicyWord(word string) (Policy, error) {
	if api, ok := strings.CutPrefix(word, "api="); ok {
		major, minor, ok := ParseVersion(api)
		if !ok {
			return 0, fmt.Errorf("policy: %q: the API version is written api=MAJOR.MINOR", word)
		}
		return Policy(major)<<16 | Policy(minor)<<24, nil
	}
	for _, p := range policyNames {
		if p.name == word {
			return p.bit, nil
		}
	}
	known := append(PolicyNames(), "api=MAJOR.MINOR", "a number")
	return 0, fmt.Errorf("policy: %w", nearest.Unknown("word", word, known))
}

// ErrPolicyReserved means that a policy sets bits without a meaning.
var ErrPolicyReserved = errors.New("policy: reserved bits 15:6 are set")

// Check reports a policy that no firmware accepts.
func (p Policy) Check() error {
	if p&policyReserved != 0 {
		return fmt.Errorf("%w: %#x", ErrPolicyReserved, uint32(p))
	}
	return nil
}

// MinAPI is the oldest firmware API that the policy admits.
func (p Policy) MinAPI() (major, minor uint8) { return uint8(p >> 16), uint8(p >> 24) }

// Admits reports whether firmware of this build may run a guest with the policy.
func (p Policy) Admits(b Build) bool {
	return b.AtLeast(p.MinAPI())
}

// Words lists the policy's bits by name; the result parses back to the policy.
func (p Policy) Words() []string {
	words := []string{}
	for _, n := range policyNames {
		if p&n.bit != 0 {
			words = append(words, n.name)
		}
	}
	if major, minor := p.MinAPI(); major != 0 || minor != 0 {
		words = append(words, fmt.Sprintf("api=%d.%d", major, minor))
	}
	return words
}

func (p Policy) String() string {
	return fmt.Sprintf("%#x (%s)", uint32(p), strings.Join(p.Words(), ","))
}

// Build names a firmware: API major and minor version, and build number.
type Build struct {
	Major uint8 `json:"api-major"`
	Minor uint8 `json:"api-minor"`
	Build uint8 `json:"build"`
}

// ParseVersion reads a version of the SEV API or the SNP ABI, MAJOR.MINOR.
func ParseVersion(text string) (major, minor uint8, ok bool) {
	a, b, _ := strings.Cut(text, ".")
	x, err1 := strconv.ParseUint(a, 10, 8)
	y, err2 := strconv.ParseUint(b, 10, 8)
	return uint8(x), uint8(y), err1 == nil && err2 == nil
}

// AtLeast compares the API's version; the build number plays no part.
func (b Build) AtLeast(major, minor uint8) bool {
	return b.Major > major || b.Major == major && b.Minor >= minor
}

func (b Build) String() string { return fmt.Sprintf("%d.%d build %d", b.Major, b.Minor, b.Build) }

// Open describes what a policy leaves open to the host, a phrase for each right (SEV API,
// chapter 3, table 2; for the targets of a migration also chapter 5, SEND_START).
func (p Policy) Open() []string {
	open := []string{}
	if p&PolicyNoDebug == 0 {
		open = append(open, "the host can read and write the guest's memory (no-debug is missing)")
	}
	if p&PolicyNoKeySharing == 0 {
		open = append(open, "another guest of the host can have this guest's key, and read its memory "+
			"(no-key-sharing is missing)")
	}
	switch {
	case p&PolicyNoSend != 0:
	case p&PolicySEV == 0:
		open = append(open, "the host can send the guest, with its secret, to a platform that AMD did not certify "+
			"(no-send is missing, and so is sev)")
	case p&PolicyDomain == 0:
		open = append(open, "the host can send the guest to any other SEV platform (no-send is missing)")
	default:
		open = append(open, "the host can send the guest to other platforms of its owner's (no-send is missing)")
	}
	if p&PolicyES == 0 {
		open = append(open, "the host can read and write the guest's registers (es is missing)")
	}
	return open
}

// Covers reports whether a policy is at least as strict as another: it forbids all
// that the other forbids, and asks for firmware as new.
func (p Policy) Covers(least Policy) bool {
	const flags = Policy(0xffff)
	have, want := uint16(p>>16&0xff)<<8|uint16(p>>24), uint16(least>>16&0xff)<<8|uint16(least>>24)
	return p&least&flags == least&flags && have >= want
}
