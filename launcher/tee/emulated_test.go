package tee

import (
	"testing"

	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/firmware/swtee/tcg"
)

// TestEmulatedPlatform holds together what the launcher expects of the emulator and
// what it has.
func TestEmulatedPlatform(t *testing.T) {
	if emulatedCBitPos != swtee.CBitPos {
		t.Errorf("the launcher expects the bit at %d, swtee has it at %d", emulatedCBitPos, swtee.CBitPos)
	}
	if emulatedMKTMEObject != tcg.MKTMEObject || emulatedMKTMEProperty != tcg.MKTMEProperty {
		t.Errorf("the launcher expects %s with %s, swtee has %s with %s", emulatedMKTMEObject,
			emulatedMKTMEProperty, tcg.MKTMEObject, tcg.MKTMEProperty)
	}
}
