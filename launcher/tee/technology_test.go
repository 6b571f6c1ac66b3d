package tee_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

const mktmeSpec = `
name = "vm"
[firmware]
image = "fw"
[confidential]
technology = "mktme"
mktme = { object = "mktme-guest", handle-property = "key-handle" }
[latch]
until = "nothing"
`

// specOf is a spec of a technology that makes sense.
func specOf(name string) string {
	if name == host.MKTME {
		return mktmeSpec
	}
	return testhost.Specs()[name]
}

// guestOf is a spec's guest as it is for its first technology.
func guestOf(text string) (*tee.Guest, error) {
	s, err := tee.Parse([]byte(text), "vm.toml", "/specs")
	if err != nil {
		return nil, err
	}
	return s.For(s.Asked()[0])
}

func mustGuest(t testing.TB, text string) *tee.Guest {
	t.Helper()
	g, err := guestOf(text)
	if err != nil {
		t.Fatalf("%s\n%v", text, err)
	}
	return g
}

// planOf plans for a guest on a host.
func planOf(g *tee.Guest, f *plan.Facts) (*plan.Plan, error) {
	return plan.Build(&g.Guest, g, rundir.Choice{}, f, testhost.Root())
}

// protection is the object that protects a spec's guest.
func protection(t testing.TB, text string, f *plan.Facts) map[string]string {
	t.Helper()
	p, err := planOf(mustGuest(t, text), f)
	if err != nil {
		t.Fatalf("%s\n%v", text, err)
	}
	d, ok := plan.ParseOptions(p.QEMUArgv()).Protection()
	if !ok {
		t.Fatalf("%s\nnothing protects the guest: %q", text, p.Argv)
	}
	return d.Props
}

// withMKTME is a host whose QEMU has an object for MKTME.
func withMKTME(f *plan.Facts) { f.Info.Objects["mktme-guest"] = []string{"key-handle"} }

// TestTraits: the table of technologies is closed, and what it says is complete.
func TestTraits(t *testing.T) {
	want := []string{"none", "sev", "sev-es", "sev-snp", "tdx", "mktme"}
	if diff := cmp.Diff(want, tee.Names()); diff != "" {
		t.Errorf("technologies (-want +got):\n%s", diff)
	}
	features := map[string]string{}
	for _, name := range want {
		got, ok := tee.Traits(name)
		if !ok || got.Name != name {
			t.Errorf("%s: traits of %q, %t", name, got.Name, ok)
		}
		if got.Confidential != (name != "none") {
			t.Errorf("%s: confidential: %t", name, got.Confidential)
		}
		if got.Confidential && (got.Vendor == "" || got.Pool == "" || !slices.Contains(got.Sharing, name)) {
			t.Errorf("%s: vendor %q, pool %q shared by %q, want all three, and itself among them",
				name, got.Vendor, got.Pool, got.Sharing)
		}
		if got.Attested == (got.Unmeasured != "") {
			t.Errorf("%s: attested %t, and not measured because %q, want one of both", name, got.Attested,
				got.Unmeasured)
		}
		if got.Attested != (got.Object.Type != "" && got.Object.Since != "" && got.Feature != "") {
			t.Errorf("%s: attested %t with object %+v and feature %q", name, got.Attested, got.Object, got.Feature)
		}
		if got.Measurable && !got.Attested || got.ModelMeasured && len(got.Models) == 0 || got.Private && got.Pinned {
			t.Errorf("%s: traits contradict each other: %+v", name, got)
		}
		if got.Feature != "" && features[got.Feature] != "" {
			t.Errorf("%s and %s have the same feature %s", name, features[got.Feature], got.Feature)
		}
		features[got.Feature] = name
	}
	for _, name := range []string{"", "SEV", "any-confidential", "sev "} {
		if got, ok := tee.Traits(name); ok || got.Name != "" {
			t.Errorf("%q is a technology: %+v", name, got)
		}
	}
}

func TestPoolsAndObjects(t *testing.T) {
	for pool, want := range map[string][]string{
		"sev": {"sev"}, "sev-es": {"sev-es", "sev-snp"}, "tdx": {"tdx"}, "mktme": {"mktme"}, "": {"none"}, "x": nil,
	} {
		if diff := cmp.Diff(want, tee.Sharing(pool)); diff != "" {
			t.Errorf("pool %q is shared by (-want +got):\n%s", pool, diff)
		}
	}
	if diff := cmp.Diff([]string{"sev-guest", "sev-snp-guest", "tdx-guest"}, tee.Objects()); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
	s, err := tee.Parse([]byte(mktmeSpec), "vm.toml", "/specs")
	if err != nil || !slices.Equal(s.Patched(), []string{"mktme-guest"}) {
		t.Errorf("objects that the spec names: %q, %v, want mktme-guest", s.Patched(), err)
	}
	if s, err = tee.Parse(nil, "vm.toml", "/specs"); err != nil || len(s.Patched()) != 0 {
		t.Errorf("objects that an empty spec names: %q, %v, want none", s.Patched(), err)
	}
}

// TestProtectingObjects: the properties of the object that protects each guest.
func TestProtectingObjects(t *testing.T) {
	hex48, base48 := strings.Repeat("0a", 48), strings.Repeat("CgoK", 16)
	sev, es, snp, tdx := specOf("sev"), specOf("sev-es"), specOf("sev-snp"), specOf("tdx")
	more := func(text, more string) string { return strings.Replace(text, "technology", more+"\ntechnology", 1) }
	legacy := func(f *plan.Facts) { f.Host.SEV.INIT2 = host.No }
	for name, c := range map[string]struct {
		text  string
		facts *plan.Facts
		want  map[string]string // "-" for a property that must not be there
	}{
		"SEV": {sev, testhost.Facts(), map[string]string{
			"qom-type": "sev-guest", "policy": "11", "cbitpos": "51", "reduced-phys-bits": "1", "kernel-hashes": "on",
			"dh-cert-file": "/specs/cert", "session-file": "/specs/session", "legacy-vm-type": "off",
		}},
		"SEV, weaker":    {more(sev, `policy = ["no-debug"]`), testhost.Facts(), map[string]string{"policy": "1"}},
		"SEV, by number": {more(sev, `policy = ["0x23"]`), testhost.Facts(), map[string]string{"policy": "35"}},
		"SEV, newer": {
			more(sev, `policy = ["no-debug", "api=1.55"]`), testhost.Facts(),
			map[string]string{"policy": "922812417"},
		},
		"SEV without hashes": {
			more(sev, "kernel-hashes = false"), testhost.Facts(), map[string]string{"kernel-hashes": "-"},
		},
		"SEV of an old host": {sev, testhost.Facts(legacy), map[string]string{"legacy-vm-type": "on"}},
		"SEV of an old QEMU": {sev, testhost.Facts(testhost.WithQEMU("7.2")), map[string]string{"legacy-vm-type": "-"}},
		"SEV as it is told": {
			more(sev, `vmsa = "legacy"`), testhost.Facts(), map[string]string{"legacy-vm-type": "on"},
		},
		"SEV as it is told, newer": {
			more(sev, `vmsa = "init2"`), testhost.Facts(legacy), map[string]string{"legacy-vm-type": "off"},
		},
		"SEV, emulated": {
			sev, testhost.Facts(testhost.Emulated("swtee"), legacy, func(f *plan.Facts) { f.Host.SEV.CBitPos = 47 }),
			map[string]string{"cbitpos": "51", "legacy-vm-type": "off"},
		},
		"SEV with another bit": {
			sev, testhost.Facts(func(f *plan.Facts) { f.Host.SEV.CBitPos = 47 }), map[string]string{"cbitpos": "47"},
		},
		"SEV on a host that tells nothing": {
			sev, testhost.Facts(func(f *plan.Facts) { f.Host.SEV = nil }),
			map[string]string{"cbitpos": "0", "legacy-vm-type": "on"},
		},
		"SEV-ES": {es, testhost.Facts(), map[string]string{
			"qom-type": "sev-guest", "policy": "15", "session-file": "-", "dh-cert-file": "-", "kernel-hashes": "-",
		}},
		"SEV-ES by its word": {
			more(es, `policy = ["no-debug", "es"]`), testhost.Facts(), map[string]string{"policy": "5"},
		},
		"SEV-SNP": {snp, testhost.Facts(), map[string]string{
			"qom-type": "sev-snp-guest", "policy": "196608", "kernel-hashes": "on", "cbitpos": "51",
			"reduced-phys-bits": "1", "host-data": "-", "id-block": "-", "author-key-enabled": "-",
		}},
		"SEV-SNP, stricter": {
			more(snp, `policy = ["single-socket"]`), testhost.Facts(),
			map[string]string{"policy": "1179648"},
		},
		"SEV-SNP with the host's data": {
			more(snp, `host-data = "`+hex48[:64]+`"`), testhost.Facts(), map[string]string{
				"host-data": base48[:42] + "o=",
			},
		},
		"TDX": {tdx, testhost.Facts(), map[string]string{
			"qom-type": "tdx-guest", "attributes": "268435456", "mrconfigid": "-", "mrowner": "-",
			"quote-generation-socket": "map[path:/specs/qgs type:unix]", "policy": "-",
		}},
		"TDX, by number": {
			more(tdx, `policy = ["0x10000000"]`), testhost.Facts(),
			map[string]string{"attributes": "268435456"},
		},
		"TDX with all words": {
			more(tdx, `policy = ["debug", "sept-ve-disable", "pks"]`), testhost.Facts(),
			map[string]string{"attributes": fmt.Sprint(1 | 1<<28 | 1<<30)},
		},
		"TDX with ids": {
			more(tdx, fmt.Sprintf("mrconfigid = %q\nmrowner = %q\nmrownerconfig = %q", hex48, hex48, hex48)),
			testhost.Facts(),
			map[string]string{"mrconfigid": base48, "mrowner": base48, "mrownerconfig": base48},
		},
		"TDX without quotes": {
			strings.Replace(tdx, `quote-socket = "qgs"`, "", 1), testhost.Facts(),
			map[string]string{"quote-generation-socket": "-"},
		},
		"MKTME": {
			mktmeSpec, testhost.Facts(withMKTME),
			map[string]string{"qom-type": "mktme-guest", "key-handle": "@key@"},
		},
	} {
		props := protection(t, c.text, c.facts)
		for property, want := range c.want {
			got, has := props[property]
			if want == "-" && has || want != "-" && got != want {
				t.Errorf("%s: %s is %q, want %q (- for none)", name, property, got, want)
			}
		}
	}
	if p, err := planOf(mustGuest(t, specOf("none")), testhost.Facts()); err != nil ||
		len(plan.ParseOptions(p.Argv).Objects()) != 0 {
		t.Errorf("a plain VM: %+v, %v, want no object", p, err)
	}
}

// TestTDXHasNoHPET where QEMU would give it one.
func TestTDXHasNoHPET(t *testing.T) {
	for has, want := range map[bool]string{true: "off", false: ""} {
		f := testhost.Facts(func(f *plan.Facts) {
			f.Info.Machine = nil
			if has {
				f.Info.Machine = host.Names{"hpet"}
			}
		})
		p, err := planOf(mustGuest(t, specOf("tdx")), f)
		if err != nil {
			t.Fatal(err)
		}
		if got := plan.ParseOptions(p.Argv).Machine("hpet"); got != want {
			t.Errorf("a machine that has one: %t: hpet=%s, want %s", has, got, want)
		}
	}
}

func TestPlansOfTechnologiesThatFail(t *testing.T) {
	more := func(text, more string) string { return strings.Replace(text, "technology", more+"\ntechnology", 1) }
	other := strings.Replace(mktmeSpec, `"mktme-guest"`, `"other"`, 1)
	for name, c := range map[string]struct {
		text  string
		facts *plan.Facts
		want  string
	}{
		"INIT2 of an old QEMU": {
			more(specOf("sev-es"), `vmsa = "init2"`), testhost.Facts(testhost.WithQEMU("7.2")),
			"set up the guest with INIT2: QEMU 7.2.22",
		},
		"MKTME of a released QEMU": {mktmeSpec, testhost.Facts(), "give a guest a key of its own: QEMU 11.1.3"},
		"another object than the emulator's": {
			other, testhost.Facts(testhost.Emulated("swtee")),
			"the emulated platform's object is mktme-guest, with key-handle",
		},
		"another property than the emulator's": {
			strings.Replace(mktmeSpec, `"key-handle"`, `"other"`, 1), testhost.Facts(testhost.Emulated("swtee")),
			"the emulated platform's object is mktme-guest",
		},
	} {
		if p, err := planOf(mustGuest(t, c.text), c.facts); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v, %v, want an error with %q", name, p, err, c.want)
		}
	}
	p, err := planOf(mustGuest(t, mktmeSpec), testhost.Facts(testhost.Emulated("swtee")))
	if err != nil || p.Key == nil || p.Key.Type != "user" {
		t.Errorf("MKTME, emulated: %+v, %v, want a key of type user", p, err)
	}
}
