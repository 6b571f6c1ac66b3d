package tee_test

import (
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/spec"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

func demands(technologies ...string) *spec.Demands {
	return &spec.Demands{Technologies: technologies, File: &spec.File{Path: "d.vmlatch.toml"}}
}

func TestCandidates(t *testing.T) {
	const asked = "[confidential]\ntechnology = "
	for _, c := range []struct {
		name, text  string
		demands     []*spec.Demands
		want        string
		from, fails string
	}{
		{"nothing", "", nil, "none", "default", ""},
		{"one", asked + "'sev'", nil, "sev", "spec", ""},
		{"several", asked + "['tdx', 'sev']", nil, "tdx sev", "the first of tdx, sev that works here (spec)", ""},
		{"an image's", "", []*spec.Demands{demands("sev-snp")}, "sev-snp", "demanded by d.vmlatch.toml", ""},
		{"an image's several", "", []*spec.Demands{demands("tdx", "sev")}, "tdx sev", "the first of tdx, sev", ""},
		{
			"the first image's", "",
			[]*spec.Demands{demands(), demands("none", "sev"), demands("tdx")},
			"tdx", "demanded by", "",
		},
		{"an image that may be unprotected", "", []*spec.Demands{demands("sev", "none")}, "none", "default", ""},
		{"an image's next to the spec's", asked + "'sev'", []*spec.Demands{demands("tdx")}, "sev", "spec", ""},
		{"values for it", asked + "'sev'\n[confidential.sev]\npolicy = ['no-debug']", nil, "sev", "spec", ""},
		{"an empty table for another", asked + "'sev'\n[confidential.tdx]", nil, "sev", "spec", ""},
		{
			"a policy for another", asked + "'sev'\n[confidential.tdx]\npolicy = ['pks']", nil, "", "",
			"confidential.tdx: is for",
		},
		{
			"a CPU for another", asked + "'sev'\n[confidential.sev-es]\ncpu = 'x'", nil, "", "",
			"confidential.sev-es: is for",
		},
		{
			"a latch for another", asked + "'sev'\n[confidential.sev-snp]\nuntil = 'x'", nil, "", "",
			"not asked for here (sev)",
		},
	} {
		s, err := tee.Parse([]byte(c.text), "vm.toml", "/")
		if err != nil {
			t.Fatal(err)
		}
		names, from, err := s.Candidates(c.demands)
		if c.fails != "" {
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%s: %q, %v, want an error with %q", c.name, names, err, c.fails)
			}
			continue
		}
		if got := strings.Join(names, " "); err != nil || got != c.want || !strings.Contains(from, c.from) {
			t.Errorf("%s: %s from %q, %v, want %s from %q", c.name, got, from, err, c.want, c.from)
		}
	}
}

func TestMayBe(t *testing.T) {
	private := func(traits plan.Traits) bool { return traits.Private }
	for _, c := range []struct {
		value   string
		demands []*spec.Demands
		want    bool
	}{
		{"'sev'", nil, false},
		{"'tdx'", nil, true},
		{"['sev', 'sev-snp']", nil, true},
		{"'none'", []*spec.Demands{demands("sev")}, false},
		{"'none'", []*spec.Demands{demands("sev", "tdx")}, true},
		{"'none'", []*spec.Demands{demands("unheard-of")}, false},
	} {
		s, err := tee.Parse([]byte("[confidential]\ntechnology = "+c.value), "vm.toml", "/")
		if err != nil {
			t.Fatal(err)
		}
		if got := s.MayBe(c.demands, private); got != c.want {
			t.Errorf("%s with demands %+v may have private memory: %t, want %t", c.value, c.demands, got, c.want)
		}
	}
}

func TestDemandsThatMakeNoSense(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "firmware = 'bios'": "", "technologies = ['none', 'tdx']": "", "[policy]\nsev = ['no-debug']": "",
		"[policy]\nsev-es = ['0x7']": "", "[policy]\nsev-snp = ['smt', 'abi=1.55']": "",
		"firmware = 'efi'":                          "d.toml:1:1: firmware: ",
		"technologies = ['sev', 'sgx']":             `technologies: "sgx": must be one of none, sev`,
		"technologies = ['any-confidential']":       `technologies: "any-confidential": must be one of`,
		"[policy]\nsev = ['nodebug']":               "d.toml:2:1: policy.sev: ",
		"[policy]\nsev-es = ['nodebug']":            "d.toml:2:1: policy.sev-es: ",
		"[policy]\nsev-snp = ['no-debug']":          "d.toml:2:1: policy.sev-snp: ",
		"[policy]\ntdx = ['pks']":                   "policy.tdx: there are policies of sev, sev-es, sev-snp",
		"[policy]\nnone = []":                       "policy.none: there are policies of",
		"[policy]\nsgx = []":                        "policy.sgx: there are policies of",
		"technologies = ['tdx']\npolicy.mktme = []": "policy.mktme: there are policies of",
	} {
		d, err := spec.ParseDemands([]byte(text), "d.toml")
		if err != nil {
			t.Fatal(err)
		}
		err = tee.CheckDemands(d)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want an error with %q", text, err, want)
		}
	}
}

// TestDemandsAreSatisfied: a guest's policy must be at least as strict as each image's
// least one.
func TestDemandsAreSatisfied(t *testing.T) {
	policy := func(tech string, words ...string) func(*spec.Demands) {
		return func(d *spec.Demands) { d.Policy = map[string][]string{tech: words} }
	}
	firmware := func(name string) func(*spec.Demands) { return func(d *spec.Demands) { d.Firmware = name } }
	technologies := func(names ...string) func(*spec.Demands) {
		return func(d *spec.Demands) { d.Technologies = names }
	}
	for _, c := range []struct {
		name, text string
		demand     func(*spec.Demands)
		want       string
	}{
		{"its technology", specOf("sev"), technologies("tdx", "sev"), ""},
		{
			"another technology", specOf("sev"), technologies("tdx", "sev-es"),
			"confidential.technology: sev, but the image demands technologies = tdx, sev-es (d.vmlatch.toml)",
		},
		{"its policy", specOf("sev"), policy("sev", "no-debug", "no-key-sharing"), ""},
		{"all that it has", specOf("sev"), policy("sev", "no-debug", "no-send"), ""},
		{"a weaker policy", specOf("sev"), policy("sev", "no-debug"), ""},
		{
			"a stricter policy", specOf("sev"), policy("sev", "no-debug", "domain"),
			"confidential.policy: 0xb (no-debug,no-key-sharing,no-send), but the image demands policy.sev = 0x11 (",
		},
		{"newer firmware", specOf("sev"), policy("sev", "api=1.51"), "but the image demands policy.sev"},
		{"newer firmware that it has", with("sev", "policy = ['no-debug', 'api=1.55']"), policy("sev", "api=1.51"), ""},
		{"another technology's policy", specOf("sev"), policy("sev-es", "no-send"), ""},
		{"registers, which are a technology", specOf("sev-es"), policy("sev-es", "es"), ""},
		{"a policy that cannot be read", specOf("sev"), policy("sev", "nodebug"), "unknown word"},
		{"SEV-SNP's own", specOf("sev-snp"), policy("sev-snp", "smt"), ""},
		{"SEV-SNP without SMT", specOf("sev-snp"), policy("sev-snp", "single-socket"), "confidential.policy: "},
		{
			"SEV-SNP of newer firmware", specOf("sev-snp"), policy("sev-snp", "smt", "abi=1.55"),
			"but the image demands policy.sev-snp",
		},
		{
			"SEV-SNP of newer firmware that it has", with("sev-snp", "policy = ['smt', 'abi=1.55']"),
			policy("sev-snp", "smt", "abi=1.51"), "",
		},
		{"a SEV-SNP policy that cannot be read", specOf("sev-snp"), policy("sev-snp", "x"), "unknown word"},
		{"TDX, which has no least policy", specOf("tdx"), policy("tdx", "pks"), ""},
		{"uefi, which its image is", specOf("sev"), firmware("uefi"), ""},
		{"uefi by features", "firmware.features = ['secure-boot']", firmware("uefi"), ""},
		{
			"bios, which its image is not", specOf("sev"), firmware("bios"),
			"firmware: uefi, but the image demands firmware = bios",
		},
		{
			"uefi, for a VM of bios", "firmware.type = 'bios'", firmware("uefi"),
			"firmware: bios, but the image demands firmware = uefi",
		},
		{"bios, for a VM of bios", "firmware.type = 'bios'", firmware("bios"), ""},
		{"uefi, where nothing is written", "", firmware("uefi"), ""},
		{"nothing", "", func(*spec.Demands) {}, ""},
	} {
		g := mustGuest(t, c.text)
		d := demands()
		c.demand(d)
		err := g.Satisfy([]*spec.Demands{demands(), d})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want an error with %q", c.name, err, c.want)
		}
		if c.text == "" && g.Firmware.Type != d.Firmware {
			t.Errorf("%s: firmware %q, want the image's %q", c.name, g.Firmware.Type, d.Firmware)
		}
	}
	g := mustGuest(t, "")
	err := g.Satisfy([]*spec.Demands{{Firmware: "uefi", File: &spec.File{}}, {Firmware: "bios", File: &spec.File{}}})
	if err == nil {
		t.Error("one image demands uefi, another bios, and both are satisfied")
	}
}
