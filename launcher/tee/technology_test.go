package tee_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmlatch/vmlatch/launcher/fault"
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
			"qom-type": "sev-guest", "policy": "3", "cbitpos": "51", "reduced-phys-bits": "1", "kernel-hashes": "on",
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
			"qom-type": "sev-guest", "policy": "7", "session-file": "-", "dh-cert-file": "-", "kernel-hashes": "-",
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

// script is a QEMU that answers commands by their names.
type script map[string]string

// errUnknown is what it says to others.
var errUnknown = errors.New("command not found")

// Execute implements qmp.Executor.
func (s script) Execute(_ context.Context, command string, _, out any) error {
	answer, ok := s[command]
	if !ok {
		return errUnknown
	}
	return json.Unmarshal([]byte(answer), out)
}

// TestQuery: what QEMU and the platform say must be what was asked for.
func TestQuery(t *testing.T) {
	const sevGood = `{"enabled":true,"policy":3,"state":"launch-secret","api-major":1,"api-minor":55,"build-id":7}`
	const snpGood = `{"enabled":true,"sev-type":"sev-snp","snp-policy":196608,"api-major":1,"api-minor":55,"build-id":7}`
	change := func(text, old, with string) script {
		if !strings.Contains(text, old) {
			t.Fatalf("%s has no %s", text, old)
		}
		return script{"query-sev": strings.Replace(text, old, with, 1)}
	}
	paused, running := script{"query-status": `{"running":false}`}, script{"query-status": `{"running":true}`}
	for _, c := range []struct {
		tech string
		q    script
		want string // part of the error; "" for none
	}{
		{"sev", change(sevGood, "", ""), ""},
		{"sev", change(sevGood, `"enabled":true`, `"enabled":false`), "SEV is not enabled"},
		{"sev", change(sevGood, `"policy":3`, `"policy":1`), "with policy 0x1 instead of 0x3"},
		{
			"sev", change(sevGood, "launch-secret", "launch-update"),
			"did not measure the guest: its state is launch-update",
		},
		{"sev", change(sevGood, "launch-secret", "running"), "its state is running instead of launch-secret"},
		{"sev", script{}, errUnknown.Error()},
		{"sev-es", change(sevGood, `"policy":3`, `"policy":7`), ""},
		{"sev-es", change(sevGood, `"policy":3`, `"policy":3`), "with policy 0x3 instead of 0x7"},
		{"sev-snp", change(snpGood, "", ""), ""},
		{"sev-snp", change(snpGood, `"enabled":true`, `"enabled":false`), "SEV-SNP is not enabled"},
		{"sev-snp", change(snpGood, `"sev-snp"`, `"sev"`), "SEV-SNP is not enabled"},
		{"sev-snp", change(snpGood, "196608", "720896"), "with policy 0xb0000 instead of 0x30000"},
		{"sev-snp", script{}, errUnknown.Error()},
		{"tdx", paused, ""},
		{"mktme", paused, ""},
		{"none", paused, ""},
		{"tdx", running, "QEMU runs the guest"},
		{"mktme", running, "QEMU runs"},
		{"none", running, "QEMU runs"},
		{"tdx", script{}, errUnknown.Error()},
	} {
		g := mustGuest(t, specOf(c.tech))
		p, err := planOf(g, testhost.Facts(withMKTME))
		if err != nil {
			t.Fatal(err)
		}
		got, err := g.Query(t.Context(), p, c.q)
		if c.want != "" {
			if err == nil || got != nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s, %v: %+v, %v, want an error with %q", c.tech, c.q, got, err, c.want)
			}
			continue
		}
		if err != nil || (got != nil) != strings.HasPrefix(c.tech, "sev") {
			t.Errorf("%s, %v: %+v, %v, want a record of AMD's alone", c.tech, c.q, got, err)
		}
		if got == nil {
			continue
		}
		if b := got.Build; b.Major != 1 || b.Minor != 55 || b.Build != 7 || got.Inputs.Firmware != "/specs/fw" {
			t.Errorf("%s: record %+v, want version 1.55 build 7 and firmware /specs/fw", c.tech, got)
		}
		policy := map[string]uint64{"sev": 3, "sev-es": 7, "sev-snp": 0x30000}[c.tech]
		if uint64(got.Policy)+uint64(got.SNPPolicy) != policy {
			t.Errorf("%s: recorded policies %#x and %#x, want %#x", c.tech, uint32(got.Policy),
				uint64(got.SNPPolicy), policy)
		}
	}
}

// TestFits: what keeps a technology from being used here.
func TestFits(t *testing.T) {
	image := func(i *plan.Image) func(*plan.Facts) { return func(f *plan.Facts) { f.Image = i } }
	cannot := func(usable host.Answer) func(*plan.Facts) {
		return func(f *plan.Facts) {
			for i := range f.Host.Technologies {
				t := &f.Host.Technologies[i]
				t.Usable, t.Why, t.Fix = usable, "no such bit", "set it"
			}
		}
	}
	snpHost := func(f *plan.Facts) { f.Host.SEV.SNPEnabled = host.Yes }
	emulated := testhost.Emulated("swtee")
	lacking := &plan.Image{HashArea: true, Lacks: map[string]string{"sev-snp": "it has no SEV metadata"}}
	for _, c := range []struct {
		name, tech string
		among      bool
		facts      *plan.Facts
		want       string
	}{
		{"a good host", "sev", false, testhost.Facts(), ""},
		{"a good host", "none", false, testhost.Facts(), ""},
		{"a host that cannot", "sev", false, testhost.Facts(cannot(host.No)), "encrypt memory with sev: no such bit"},
		{"a host that cannot", "tdx", true, testhost.Facts(cannot(host.No)), "encrypt memory with tdx: no such bit"},
		{"a host that cannot", "none", false, testhost.Facts(cannot(host.No)), ""},
		{"a host that does not tell", "sev", false, testhost.Facts(cannot(host.Unknown)), ""},
		{"a host that cannot, emulated", "sev", false, testhost.Facts(cannot(host.No), emulated), ""},
		{"a plain VM, emulated", "none", false, testhost.Facts(emulated), "there is nothing to emulate"},
		{
			"an old QEMU", "sev-snp", false, testhost.Facts(testhost.WithQEMU("7.2")),
			"launch a guest of technology sev-snp: QEMU 7.2",
		},
		{"a QEMU without a patch", "mktme", false, testhost.Facts(), "has no object mktme-guest"},
		{"a patched QEMU", "mktme", false, testhost.Facts(withMKTME), ""},
		{"a QEMU without a patch, emulated", "mktme", false, testhost.Facts(emulated), ""},
		{"a host of SEV-SNP", "sev", true, testhost.Facts(snpHost), "take sev by choice"},
		{"a host of SEV-SNP", "sev-es", true, testhost.Facts(snpHost), "take sev-es by choice"},
		{"a host of SEV-SNP", "sev-snp", true, testhost.Facts(snpHost), ""},
		{"a host of SEV-SNP, without a choice", "sev", false, testhost.Facts(snpHost), ""},
		{"a host of SEV-SNP, emulated", "sev", true, testhost.Facts(snpHost, emulated), ""},
		{"a host that may run SEV-SNP", "sev", true, testhost.Facts(), ""},
		{"an Intel host", "sev", true, testhost.Facts(func(f *plan.Facts) { f.Host.SEV = nil }), ""},
		{
			"an image without tables", "sev-snp", true, testhost.Facts(image(lacking)),
			"/specs/fw: it has no SEV metadata",
		},
		{"an image without tables, without a choice", "sev-snp", false, testhost.Facts(image(lacking)), ""},
		{"an image without another's tables", "sev", true, testhost.Facts(image(lacking)), ""},
		{
			"an image without hashes", "sev", true, testhost.Facts(image(&plan.Image{})),
			"it has no area for kernel hashes",
		},
		{"an image without hashes, for no kernel", "sev-es", true, testhost.Facts(image(&plan.Image{})), ""},
		{"an IGVM file", "sev-snp", true, testhost.Facts(image(&plan.Image{IGVM: true})), ""},
	} {
		g := mustGuest(t, specOf(c.tech))
		err := g.Fits(c.facts, c.among)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s, %s: %v, want an error with %q", c.name, c.tech, err, c.want)
		}
		if e := fault.As(err); e != nil && strings.Contains(c.want, "no such bit") &&
			(!e.Hardware || e.Fix != "set it" || e.Check != "technology-usable" || !errors.Is(err, fault.ErrHost)) {
			t.Errorf("%s, %s: %#v, want the host's error, which an emulator would help", c.name, c.tech, e)
		}
	}
}

func TestKnows(t *testing.T) {
	old := testhost.Facts(testhost.WithQEMU("7.2"))
	for tech, want := range map[string]bool{
		"sev": true, "sev-es": true, "sev-snp": false, "tdx": false, "mktme": false,
	} {
		if err := mustGuest(t, specOf(tech)).Knows(old); (err == nil) != want {
			t.Errorf("QEMU 7.2 knows %s: %v, want %t", tech, err, want)
		}
	}
}

// TestGuestsThatAreChanged after they were checked do not get a weaker plan: what cannot
// be read is an error there, too.
func TestGuestsThatAreChanged(t *testing.T) {
	bad := []string{"unheard-of"}
	for name, c := range map[string]struct {
		tech   string
		change func(*tee.Confidential)
		query  bool // fails, too
	}{
		"a policy of SEV":     {"sev", func(c *tee.Confidential) { c.Policy = bad }, true},
		"a policy of SEV-SNP": {"sev-snp", func(c *tee.Confidential) { c.Policy = bad }, true},
		"attributes":          {"tdx", func(c *tee.Confidential) { c.Policy = bad }, false},
		"host's data":         {"sev-snp", func(c *tee.Confidential) { c.HostData = "00" }, false},
		"an id":               {"tdx", func(c *tee.Confidential) { c.MROwner = "00" }, false},
	} {
		g := mustGuest(t, specOf(c.tech))
		good, err := planOf(g, testhost.Facts())
		if err != nil {
			t.Fatal(err)
		}
		c.change(&g.Confidential)
		if p, err := planOf(g, testhost.Facts()); err == nil {
			t.Errorf("%s: %q, want an error", name, p.Argv)
		}
		q := script{"query-sev": `{"enabled":true,"sev-type":"sev-snp","state":"launch-secret"}`}
		if got, err := g.Query(t.Context(), good, q); c.query && (err == nil ||
			!strings.Contains(err.Error(), "unheard-of")) {
			t.Errorf("%s: %+v, %v, want an error about unheard-of", name, got, err)
		}
	}
}
