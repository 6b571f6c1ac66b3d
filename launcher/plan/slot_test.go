package plan_test

import (
	"testing"

	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/slot"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// TestSlotOf: whose slots a technology takes, and how many there are.
func TestSlotOf(t *testing.T) {
	f := testhost.Facts(func(f *plan.Facts) { f.Slots = map[string]int{"sev": 15, "sev-es": 500} })
	for tech, want := range map[string]plan.Slot{
		host.SEV: {Pool: "sev", Size: 15, From: "[slots] of host.toml", InUse: 1, Dir: f.SlotDir},
		host.SEVES: {
			Pool: "sev-es", Size: 99, From: "misc.capacity", InUse: -1, Dir: f.SlotDir,
		}, // an operator cannot add any
		host.SNP: {Pool: "sev-es", Size: 99, From: "misc.capacity", InUse: -1, Dir: f.SlotDir},
	} {
		if got := slotOf(f, tech); got == nil || *got != want {
			t.Errorf("%s: %+v, want %+v", tech, got, want)
		}
	}
	f.Slots["sev-snp"] = 7 // who shares its slots is limited with it
	for _, tech := range []string{host.SEVES, host.SNP} {
		if got := slotOf(f, tech); got.Size != 7 {
			t.Errorf("%s: %+v, want 7 slots", tech, got)
		}
	}
	delete(f.Slots, "sev-snp")
	for _, tech := range []string{"none", host.TDX} {
		if got := slotOf(f, tech); got != nil {
			t.Errorf("%s: %+v, want no slot", tech, got)
		}
	}
	f.Emulator = []string{"swtee", "--"}
	if got := slotOf(f, host.SNP); got == nil || got.Pool != "emulated-sev-es" || got.Size != 500 {
		t.Errorf("emulated: %+v, want 500 slots of emulated-sev-es", got)
	}
	if got := slotOf(f, "none"); got != nil {
		t.Errorf("emulated none: %+v, want no slot", got)
	}
	if got := slotOf(f, host.TDX); got == nil || got.Pool != "emulated-tdx" || got.Size != slot.Unlimited {
		t.Errorf("emulated: %+v, want emulated-tdx without a limit", got)
	}
}

// FuzzParseOptions: a command line taken apart is what it was made of.
func FuzzParseOptions(f *testing.F) {
	f.Add("q35,a=b,,c,d=e", "{\"qom-type\":\"x\"}")
	f.Fuzz(func(t *testing.T, a, b string) {
		o := plan.ParseOptions([]string{"qemu", "-machine", a, "-object", b, "-S"})
		_, _ = o.Machine("a"), o.Objects()
		if !o.Flags["-S"] && a != "-S" && b != "-S" {
			t.Errorf("%q %q: -S is lost", a, b)
		}
	})
}

// slotOf is the slot that a technology takes.
func slotOf(f *plan.Facts, technology string) *plan.Slot {
	t, _ := tee.Traits(technology)
	return f.Slot(t)
}
