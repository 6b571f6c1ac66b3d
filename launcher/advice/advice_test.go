package advice_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/launcher/advice"
	"github.com/vmlatch/vmlatch/launcher/fault"
)

// TestStatus: the firmware's status is read in the base in which it is written.
func TestStatus(t *testing.T) {
	for text, want := range map[string]sev.Status{
		"SEV: failed to inject secret ret=-5 fw_error=11 'Bad measurement'": sev.StatusBadMeasurement,
		"fw_error=0x0b ''": sev.StatusBadMeasurement, "fw_err='16: Guest handle'": 16, "fw_error=0x16 ''": 22,
		"fw_error='0x17: x'": 23,
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
