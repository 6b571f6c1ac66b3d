package refusal

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestError(t *testing.T) {
	e := New(Measurement).Differs("MEASUREMENT", []byte{1}, []byte{2})
	if got, want := e.Error(), "MEASUREMENT is 01, must be 02 (measurement)"; !strings.Contains(got, want) {
		t.Errorf("%q, want %q in it", got, want)
	}
	if got := Of(fmt.Errorf("report: %w", e)); got != e {
		t.Errorf("%v, want the refusal", got)
	}
	if got := Of(errors.New("x")); got != nil {
		t.Errorf("%v, want none", got)
	}
	if got := New(VMPL).Value("VMPL", "7", "").Because("the host asked").Error(); !strings.Contains(
		got,
		"the host asked: VMPL is 7 (vmpl)",
	) {
		t.Errorf("%q", got)
	}
}

// TestMeanings: every code can be told to a person, with what helps.
func TestMeanings(t *testing.T) {
	for r, m := range meanings {
		if m.text == "" || m.fix == "" || strings.HasSuffix(m.text, ".") || strings.HasSuffix(m.fix, ".") {
			t.Errorf("%s: %+v, want a sentence and a remedy without full stops", r, m)
		}
	}
	if Meaning("nonsense") != "" {
		t.Error("a code that does not exist has a meaning")
	}
}
