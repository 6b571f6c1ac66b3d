package plan_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmlatch/vmlatch/firmware/bytesize"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// TestPrivateMemoryStaysAsItIsToldTo: keys of the spec come after the technology's.
func TestPrivateMemoryStaysAsItIsToldTo(t *testing.T) {
	for text, want := range map[string]string{
		"": `{"id":"ram","prealloc":false,"qom-type":"memory-backend-memfd","share":true,"size":536870912}`,
		"[memory-backend]\nprealloc = true\nshare = true": `{"id":"ram",` +
			`"prealloc":true,"qom-type":"memory-backend-memfd","share":true,"size":536870912}`,
	} {
		got := plan.ParseOptions(mustPlan(t, snpSpec+text, testhost.Facts()).Argv).Values["-object"][0]
		if got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
	f := testhost.Facts(func(f *plan.Facts) { f.Info = nil })
	if _, err := planFor("memory-backend.type = 'memfd'", f); err != nil {
		t.Errorf("a QEMU that was not asked: %v, want a plan: it may have what a plain VM needs", err)
	}
}

// TestMemoryThatIsPinned: QEMU pins the memory of SEV guests, with room for ROMs.
func TestMemoryThatIsPinned(t *testing.T) {
	const room = 256 << 20
	if got, want := plan.LockedMemory(1<<30), bytesize.Size(1<<30+room); got != want {
		t.Errorf("%v for 1 GiB, want %v", got, want)
	}
	for name, c := range map[string]struct {
		text  string
		facts *plan.Facts
		want  bytesize.Size
	}{
		"plain":    {"", testhost.Facts(), 0},
		"SEV":      {sevSpec, testhost.Facts(), 512<<20 + room},
		"SEV-SNP":  {snpSpec, testhost.Facts(), 0},
		"emulated": {sevSpec, testhost.Facts(testhost.Emulated("swtee")), 0},
	} {
		if got := mustPlan(t, c.text, c.facts).MemoryLock; got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// TestCoverage: what a measurement would prove, and what it would not.
func TestCoverage(t *testing.T) {
	never := []string{"memory size", "devices and ACPI tables", "disks and networks"}
	for name, c := range map[string]struct {
		text            string
		facts           *plan.Facts
		covered, missed []string
	}{
		"plain": {"", testhost.Facts(), nil, []string{"everything: a plain VM is not measured"}},
		"SEV": {
			sevSpec, testhost.Facts(),
			[]string{
				"firmware image", "guest policy", "platform firmware version", "kernel", "initrd",
				"kernel command line",
			},
			append([]string{"number and model of CPUs"}, never...),
		},
		"SEV without a kernel": {
			testhost.Specs()["sev-es"], testhost.Facts(),
			[]string{"firmware image", "guest policy", "platform firmware version", "number and model of CPUs"},
			never,
		},
		"kernel hashes off": {
			strings.Replace(snpSpec, "kernel-hashes = true", "kernel-hashes = false", 1), testhost.Facts(),
			[]string{"firmware image", "number and model of CPUs"},
			append([]string{"kernel, initrd and command line: kernel-hashes is off"}, never...),
		},
		"TDX": {
			testhost.Specs()["tdx"] + "[kernel]\nimage = 'k'", testhost.Facts(),
			[]string{
				"firmware image", "attributes of the trust domain (in quotes)",
				"kernel, initrd and command line (by the firmware, in RTMR1 and RTMR2)",
			},
			append([]string{"number and model of CPUs"}, never...),
		},
		"an IGVM file": {
			igvmSpec, testhost.Facts(testhost.WithIGVM),
			[]string{"firmware image", "registers of the CPUs that the IGVM file names"},
			never,
		},
	} {
		got := mustPlan(t, c.text, c.facts).Covers
		if diff := cmp.Diff(plan.Coverage{Covered: c.covered, NotCovered: c.missed}, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestReset: a confidential guest may be reset where its QEMU relaunches it, unless an
// owner's secret would be missing afterwards.
func TestReset(t *testing.T) {
	can := testhost.Facts()
	can.Info.Features = map[string]host.Names{"sev-guest": {"confidential-guest-reset"}}
	unverified := "firmware.image = 'f'\n[confidential]\n" + sevUnverified
	for name, c := range map[string]struct {
		text  string
		facts *plan.Facts
		want  bool
	}{
		"plain":                      {"", testhost.Facts(), false},
		"an older QEMU":              {unverified, testhost.Facts(testhost.WithQEMU("10.0")), true},
		"a QEMU that relaunches":     {unverified, can, false},
		"a secret":                   {sevSpec, can, true},
		"a QEMU that was not asked":  {unverified, testhost.Facts(func(f *plan.Facts) { f.Info.Features = nil }), true},
		"another object's relaunch":  {testhost.Specs()["tdx"], can, true},
		"plain, with a newer object": {"", can, false},
	} {
		p := mustPlan(t, c.text, c.facts)
		if got := plan.ParseOptions(p.Argv).Flags["-no-reboot"]; got != c.want {
			t.Errorf("%s: -no-reboot %t, want %t", name, got, c.want)
		}
	}
	if (&plan.Facts{}).Resets(&plan.Guest{}, plan.Traits{}) {
		t.Error("a QEMU that was not asked resets guests, want it not to")
	}
}

func TestNamesOfGuests(t *testing.T) {
	for path, c := range map[string]struct{ text, want string }{
		"web.toml":    {"", "web"},
		"../a/b.c":    {"", "b"},
		"db":          {"", "db"},
		"other.toml":  {"name = 'web'", "web"},
		"x.y.toml":    {"name = 'x-1'", "x-1"},
		"../abc.toml": {"name = ''", "abc"},
	} {
		s, err := tee.Parse([]byte(c.text), path, "/specs")
		if err != nil || s.Name() != c.want {
			t.Errorf("%s, %q: %v, want a guest of name %s", path, c.text, err, c.want)
		}
	}
	g, err := plan.NewGuest().Named("other")
	if err != nil || g.Name != "other" {
		t.Errorf("named other: %q, %v", g.Name, err)
	}
	_, err = g.Named("a/b")
	if e := fault.As(err); e == nil || e.Kind != fault.Usage {
		t.Errorf("named a/b: %v, want an error of kind Usage", err)
	}
	if g.Name != "other" {
		t.Errorf("the guest became %q, want it unchanged", g.Name)
	}
}

func TestPathOfQEMU(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "qemu = 'qemu-kvm'": "qemu-kvm", "qemu = './q'": "/specs/q", "qemu = 'a/q'": "/specs/a/q",
		"qemu = '/q'": "/q",
	} {
		s, err := tee.Parse([]byte(text), "vm.toml", "/specs")
		if err != nil {
			t.Errorf("%q: %v", text, err)
		} else if got := s.Guest().QEMU; got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
