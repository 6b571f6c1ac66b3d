package sev_test

import (
	"testing"

	"github.com/vmlatch/vmlatch/firmware/sev"
)

// TestPolicyCovers: flags and the firmware's version, each alone.
func TestPolicyCovers(t *testing.T) {
	for _, c := range []struct {
		have, least sev.Policy
		want        bool
	}{
		{0, 0, true},
		{3, 1, true},
		{1, 3, false},
		{0, 0x8000, false},
		{1, 1 << 24, false},               // 0.0 where 0.1 is asked for
		{1<<24 | 1, 1, true},              // newer
		{0x3701_0001, 0x3701_0001, true},  // 1.55
		{0x3601_0001, 0x3701_0001, false}, // 1.54
		{0x0002_0001, 0x3701_0001, true},  // 2.0 is newer than 1.55
		{0x3701_0001, 0x0002_0001, false}, // and 1.55 older than 2.0
		{0xff00_0000, 0x0001_0000, false}, // 0.255
		{0x3701_0000, 0x3701_0001, false}, // the version alone is not enough
		{0x3701_0001, 0x3701_0000, true},  // stricter
		{0xffff_ffff, 0x00ff_ffff, true},  // everything
		{0x00ff_ffff, 0xffff_ffff, false}, // 255.0
		{0x0000_0000, 0x0000_0040, false}, // reserved bits count, too
		{0x0000_0001, 0x0000_0002, false}, // neither covers the other
		{0x0000_0002, 0x0000_0001, false},
		{0x0001_0000, 0x0100_0000, true}, // 1.0 and 0.1
		{0x0100_0000, 0x0001_0000, false},
		{0x0101_0000, 0x0001_0000, true}, // 1.1 and 1.0
		{0x0001_0000, 0x0101_0000, false},
	} {
		if got := c.have.Covers(c.least); got != c.want {
			t.Errorf("%v covers %v: %t, want %t", c.have, c.least, got, c.want)
		}
	}
}

func TestSNPPolicyCovers(t *testing.T) {
	const base = sev.SNPPolicyReserved
	for _, c := range []struct {
		have, least sev.SNPPolicy
		want        bool
	}{
		{base, base, true},
		{base, base | sev.SNPPolicyDebug, true},
		{base | sev.SNPPolicyDebug, base, false},
		{base | sev.SNPPolicyMigrate, base, false},
		{base | sev.SNPPolicySMT, base, false},
		{base | sev.SNPPolicyCXL, base, false},
		{base | sev.SNPPolicyCXL, base | sev.SNPPolicyCXL, true},
		{base, base | sev.SNPPolicySingleSocket, false},
		{base | sev.SNPPolicySingleSocket, base, true},
		{base | sev.SNPPolicyAES256, base | sev.SNPPolicyAES256, true},
		{base, base | sev.SNPPolicyNoRAPL, false},
		{base, base | sev.SNPPolicyCiphertextHiding, false},
		{base | 0x0137, base | 0x0136, true},
		{base | 0x0136, base | 0x0137, false},
		{base | 0x0200, base | 0x0137, true},
		{0, base, false},
	} {
		if got := c.have.Covers(c.least); got != c.want {
			t.Errorf("%v covers %v: %t, want %t", c.have, c.least, got, c.want)
		}
	}
}

func TestSNPPolicyWords(t *testing.T) {
	for text, want := range map[string]sev.SNPPolicy{
		"0x30000":                     sev.SNPPolicyDefault,
		" 0x20000 ":                   sev.SNPPolicyReserved,
		"smt":                         sev.SNPPolicyDefault,
		"smt, abi=1.55":               sev.SNPPolicyDefault | 0x0137,
		"debug,migrate":               sev.SNPPolicyReserved | sev.SNPPolicyDebug | sev.SNPPolicyMigrate,
		"single-socket,cxl":           sev.SNPPolicyReserved | sev.SNPPolicySingleSocket | sev.SNPPolicyCXL,
		"aes-256-xts,no-rapl":         sev.SNPPolicyReserved | sev.SNPPolicyAES256 | sev.SNPPolicyNoRAPL,
		"ciphertext-hiding,abi=255.0": sev.SNPPolicyReserved | sev.SNPPolicyCiphertextHiding | 0xff00,
		"0x3ffffff":                   0x3ffffff,
	} {
		if got, err := sev.ParseSNPPolicy(text); err != nil || got != want {
			t.Errorf("%q parses to %v, %v, want %v", text, got, err, want)
		}
	}
	for _, bad := range []string{
		"", "0", "0x10000", "0x4020000", "x", "smt,,debug", "abi=1", "abi=1.x", "abi=x.1", "abi=1.256",
	} {
		if got, err := sev.ParseSNPPolicy(bad); err == nil {
			t.Errorf("%q parses to %v, want an error", bad, got)
		}
	}
	if got, want := (sev.SNPPolicyDefault | 0x0137).String(), "0x30137 (smt,abi=1.55)"; got != want {
		t.Errorf("prints as %q, want %q", got, want)
	}
	if got, want := sev.SNPPolicyReserved.String(), "0x20000 ()"; got != want {
		t.Errorf("prints as %q, want %q", got, want)
	}
	if got, want := sev.Policy(0x37010003).String(), "0x37010003 (no-debug,no-key-sharing,api=1.55)"; got != want {
		t.Errorf("prints as %q, want %q", got, want)
	}
	for b, want := range map[sev.Build]bool{
		{Major: 1, Minor: 54}: false, {Major: 1, Minor: 55}: true, {Major: 2}: true, {Minor: 99}: false,
	} {
		if got := (sev.SNPPolicyDefault | 0x0137).Admits(b); got != want {
			t.Errorf("abi=1.55 admits %v: %t, want %t", b, got, want)
		}
	}
}

func TestPageTypes(t *testing.T) {
	for p, want := range map[sev.PageType]string{
		sev.PageNormal: "normal", sev.PageCPUID: "cpuid", 0: "type 0", 7: "type 7",
	} {
		if got := p.String(); got != want {
			t.Errorf("page type %d prints as %q, want %q", uint8(p), got, want)
		}
	}
	var a, b, c sev.SNPDigest
	a.Extend(sev.PageZero, 0x1000, [48]byte{})
	b.Extend(sev.PageZero, 0x1000, [48]byte{1})
	c.Extend(sev.PageNormal, 0x1000, [48]byte{1})
	if a != b || a == c {
		t.Errorf("digests %v, %v, %v: contents must count for measured pages alone", a, b, c)
	}
	if len(a.String()) != 96 {
		t.Errorf("prints as %q, want 96 hex digits", a.String())
	}
}

func TestStatusPrints(t *testing.T) {
	if got, want := sev.Status(0x7777).Name(), "STATUS_0x7777"; got != want {
		t.Errorf("name %q, want %q", got, want)
	}
	if last := len(sev.Statuses()); sev.Status(last).Text() != "unknown error" ||
		sev.Status(last-1).Text() == "unknown error" {
		t.Errorf("texts %q, %q, want the last known one and none behind it", sev.Status(last-1).Text(),
			sev.Status(last).Text())
	}
	one := sev.Status(1)
	want := "SEV firmware: " + one.Text() + " (fw_error 1, " + one.Name() + ")"
	if got := one.Error(); got != want {
		t.Errorf("error %q, want %q", got, want)
	}
	if got, want := (sev.Build{Major: 1, Minor: 55, Build: 21}).String(), "1.55 build 21"; got != want {
		t.Errorf("build %q, want %q", got, want)
	}
}
