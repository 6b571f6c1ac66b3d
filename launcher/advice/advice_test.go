package advice_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/launcher/advice"
	"github.com/vmlatch/vmlatch/launcher/fault"
)

func TestAdvice(t *testing.T) {
	for text, want := range map[string]string{
		"sev_launch_start: LAUNCH_START ret=-5 fw_error=11 'Bad measurement'":                        "another platform, or for another policy",
		"sev_launch_start: LAUNCH_START ret=-5 fw_error=7 'Policy is not allowed'":                   "newer SEV firmware",
		"sev_launch_start: LAUNCH_START ret=-5 fw_error=6 'Certificate is invalid'":                  "malformed",
		"sev_launch_start: LAUNCH_START ret=-5 fw_error=23 'Required firmware resource depleted'":    "no free encryption slot",
		"SEV: guest firmware hashes table area is invalid (base=0x0 size=0x0)":                       "no area for kernel hashes",
		"sev_kvm_init: failed to get platform status ret=-1 fw_error='1: Platform state is invalid'": "not initialised",
		"sev_launch_start: LAUNCH_START ret=1 fw_error=16 'Guest handle is invalid'":                 "has lost this guest",
		"sev_common_kvm_init: failed to initialize ret=-16 fw_error=0 ''":                            "no free encryption slot",
		"sev_launch_update_data: LAUNCH_UPDATE ret=-5 fw_error=9 'Invalid address'":                  "refused a step",
		"sev_ram_block_added: failed to register region (0x7f+0x1) error 'Cannot allocate memory'":   "may not pin",
		"SNP_LAUNCH_START ret=-5 fw_error=7 'Policy is not allowed'":                                 "does not allow the policy",
		"foo: 'nope-pci' is not a valid device model name":                                           "no device, object or property",
		"Failed to get \"write\" lock":                                                               "another process uses",
		"unsupported machine type":                                                                   "does not know the machine type",
	} {
		a := advice.For(&fault.Error{Kind: fault.QEMU, Op: "x", Err: errors.New("QEMU did not start: " + text)})
		if !strings.Contains(a.Cause, want) || len(a.Fixes) != 1 || a.Fixes[0] == "" {
			t.Errorf("%s: cause %q, want one with %q (%+v)", text, a.Cause, want, a)
		}
	}
	unknown := &fault.Error{Kind: fault.QEMU, Op: "x", Err: errors.New("something new")}
	if a := advice.For(unknown); a.Cause != "" || len(a.Fixes) > 0 {
		t.Errorf("an unknown error is explained: %+v", a)
	}
}

// TestStatus: the firmware's status is read in the base in which it is written.
func TestStatus(t *testing.T) {
	for text, want := range map[string]sev.Status{
		"SEV: failed to inject secret ret=-5 fw_error=11 'Bad measurement'": sev.StatusBadMeasurement,
		"fw_error=0x0b ''": sev.StatusBadMeasurement, "fw_err='16: Guest handle'": 16, "fw_error=0x16 ''": 22, "fw_error='0x17: x'": 23,
	} {
		if got, ok := advice.Status(text); !ok || got != want {
			t.Errorf("%s: status %d, %t, want %d", text, got, ok, want)
		}
	}
	if got, ok := advice.Status("fw_error=none"); ok {
		t.Errorf("status %d where there is none", got)
	}
	// 0x16 is 22, a parameter that is not supported, and not 16, a guest that was lost.
	a := advice.For(&fault.Error{Kind: fault.QEMU, Err: errors.New("LAUNCH_START ret=1 fw_error=0x16 ''")})
	if !strings.Contains(a.Cause, "does not take a parameter") {
		t.Errorf("0x16: cause %q", a.Cause)
	}
	if got := advice.Decimal("fw_error=0xffffffffffff "); got != "fw_error=0xffffffffffff " {
		t.Errorf("a status of 48 bits became %q", got)
	}
}
