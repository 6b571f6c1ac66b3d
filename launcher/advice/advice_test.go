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
		a, ok := Advise(&StartError{Name: "x", Err: qmp.ErrClosed, Stderr: text})
		if !ok || !strings.Contains(a.Cause, want) || a.Fix == "" {
			t.Errorf("%s: %+v", text, a)
		}
	}
	if _, ok := Advise(&StartError{Name: "x", Err: errors.New("x"), Stderr: "something new"}); ok {
		t.Error("an unknown error is explained")
	}
	p := platformError("vm", "inject", errors.New("SEV: failed to inject secret ret=-5 fw_error=11 'Bad measurement'"))
	var typed *PlatformError
	if !errors.As(p, &typed) || typed.Status != sev.StatusBadMeasurement {
		t.Errorf("status %v", typed.Status)
	}
}
