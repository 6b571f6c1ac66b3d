package advice_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/launcher/advice"
	"github.com/vmlatch/vmlatch/launcher/fault"
)

// TestHexStatus: the firmware's status is read in the base in which it is written.
func TestHexStatus(t *testing.T) {
	// 0x16 is 22, a parameter that is not supported, and not 16, a guest that was lost.
	a := advice.For(&fault.Error{Kind: fault.QEMU, Err: errors.New("LAUNCH_START ret=1 fw_error=0x16 ''")})
	if !strings.Contains(a.Cause, "does not take a parameter") {
		t.Errorf("0x16: cause %q", a.Cause)
	}
}
