package tee_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// with puts a line into a spec's table [confidential].
func with(tech, line string) string {
	return strings.Replace(specOf(tech), "technology", line+"\ntechnology", 1)
}

// latched is a technology's spec with another table [latch].
func latched(tech, latch string) string {
	text, _, _ := strings.Cut(specOf(tech), "[latch]")
	return text + "[latch]\n" + latch
}

// TestSpecsThatMakeNoSense for the technology that they ask for.
func TestSpecsThatMakeNoSense(t *testing.T) {
	unsigned := strings.NewReplacer(`owner-cert = "cert"`, "", `session = "session"`, "").Replace
	tcg := func(tech string) string { return "accel = 'tcg'" + specOf(tech) }
	noFirmware := func(tech string) string { return strings.Replace(specOf(tech), `image = "fw"`, "", 1) }
	for _, c := range []struct{ text, want string }{
		{"[confidential]\ntechnology = 5", "confidential.technology: 5: must be a name or a list of names"},
		{"[confidential]\ntechnology = ['sev', 5]", "must be a name or a list of names"},
		{"[confidential]\ntechnology = []", "confidential.technology: is an empty list"},
		{"[confidential]\ntechnology = ['sev', 'sev']", `"sev" is listed twice`},
		{"[confidential]\ntechnology = ['sev', 'none']", `"none" stands alone`},
		{"[confidential]\ntechnology = ['any-confidential', 'sev']", `"any-confidential" stands alone`},
		{"[confidential]\ntechnology = ['any-confidential']", `"any-confidential": must be one of none, sev, sev-es`},
		{
			"[confidential]\ntechnology = 'SEV'",
			`"SEV": must be one of none, sev, sev-es, sev-snp, tdx, mktme, any-confidential`,
		},

		{"[latch]\nuntil = 'nothing'", `latch.until: "nothing": a plain VM is not measured`},
		{"[confidential]\nkernel-hashes = true", `confidential.kernel-hashes: technology "none" has no such hashes`},

		{with("sev", "policy = ['nodebug']"), "confidential.policy: "},
		{with("sev", "policy = ['api=1']"), "api=MAJOR.MINOR"},
		{with("sev", "policy = ['es']"), `confidential.policy: es: write technology = "sev-es"`},
		{with("sev", "vmsa = 'init3'"), `confidential.vmsa: "init3": must be init2 or legacy`},
		{tcg("sev"), "accel: tcg cannot encrypt memory"},
		{tcg("sev-es"), "accel: tcg cannot encrypt memory"},
		{tcg("sev-snp"), "accel: tcg cannot encrypt memory"},
		{tcg("tdx"), "accel: tcg cannot encrypt memory"},
		{tcg("mktme"), "accel: tcg cannot encrypt memory"},
		{noFirmware("sev"), `firmware that knows sev: give image, or features = ["amd-sev"]`},
		{noFirmware("sev-snp"), `features = ["amd-sev-snp"]`},
		{noFirmware("tdx"), `features = ["intel-tdx"]`},
		{unsigned(specOf("sev")), "latch.until: without a session the launch cannot be verified"},
		{unsigned(specOf("sev")) + "[latch]\nuntil = 'secret'", "latch.until: secret: without a session"},
		{latched("sev", "until = 'id-block'"), `latch.until: "id-block": must be "secret" or "nothing"`},
		{latched("sev", "until = 'none'"), `latch.until: "none": must be "secret" or "nothing"`},
		{latched("sev", "until = 'nothing'\nowner = ['x']"), `latch.owner: not used with until = "nothing"`},

		{with("sev-snp", "policy = ['no-debug']"), "confidential.policy: "},
		{with("sev-snp", "host-data = '00'"), "confidential.host-data: must be 32 bytes in hex"},
		{with("sev-snp", "host-data = '"+strings.Repeat("x", 64)+"'"), "must be 32 bytes in hex"},
		{with("sev-snp", "session = 's'"), "confidential.session: SEV-SNP has no sessions"},
		{with("sev-snp", "owner-cert = 'c'"), "confidential.session: SEV-SNP has no sessions"},
		{latched("sev-snp", ""), "SEV-SNP shows no measurement while the guest is paused"},
		{latched("sev-snp", "until = 'secret'"), "SEV-SNP shows no measurement"},
		{latched("sev-snp", "until = 'id-block'"), "latch.until: id-block: none is given"},
		{latched("sev-snp", "until = 'id-block'\nowner = ['x']"), "latch.owner: not used with sev-snp"},
		{latched("sev-snp", "until = 'later'"), `latch.until: "later": must be "evidence", "id-block" or "nothing"`},
		{latched("sev-snp", "until = 'nothing'\nowner = ['x']"), "latch.owner: not used with sev-snp"},

		{with("tdx", "policy = ['sept-ve']"), "confidential.policy: attributes: "},
		{with("tdx", "policy = ['0x1', '0x2']"), "confidential.policy: attributes: "},
		{with("tdx", "mrconfigid = '00'"), "confidential.mrconfigid: must be 48 bytes in hex"},
		{with("tdx", "mrowner = '00'"), "confidential.mrowner: must be 48 bytes in hex"},
		{with("tdx", "mrownerconfig = '00'"), "confidential.mrownerconfig: must be 48 bytes in hex"},
		{with("tdx", "kernel-hashes = true"), `confidential.kernel-hashes: technology "tdx" has no such hashes`},
		{latched("tdx", ""), "TDX shows no measurement while the guest is paused"},
		{latched("tdx", "until = 'secret'"), "TDX shows no measurement"},
		{latched("tdx", "until = 'id-block'"), `latch.until: "id-block": must be "nothing"`},

		{strings.Replace(mktmeSpec, "mktme = {", "# {", 1), "confidential.mktme: no released QEMU has an object"},
		{
			strings.Replace(mktmeSpec, `object = "mktme-guest"`, `object = ""`, 1),
			"confidential.mktme: no released QEMU",
		},
		{strings.Replace(mktmeSpec, `"key-handle"`, `""`, 1), "confidential.mktme: no released QEMU"},
		{
			strings.Replace(mktmeSpec, " }", `, algorithm = "aes" }`, 1),
			`confidential.mktme.algorithm: "aes": must be aes-xts-128`,
		},
		{latched("mktme", ""), "MKTME has no attestation at all"},
		{latched("mktme", "until = 'secret'"), "MKTME has no attestation at all"},
	} {
		_, err := guestOf(c.text)
		if e := fault.As(err); e == nil || e.Kind != fault.Spec || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\n%v, want an error of kind Spec with %q", c.text, err, c.want)
		}
	}
}

// TestSpecsThatMakeSense: and what opens their latch.
func TestSpecsThatMakeSense(t *testing.T) {
	for _, c := range []struct{ text, latch string }{
		{specOf("none"), plan.UntilNone},
		{"[latch]\nuntil = 'none'", plan.UntilNone},
		{specOf("sev"), plan.UntilSecret},
		{latched("sev", "owner = ['x']"), plan.UntilSecret},
		{latched("sev", "until = 'nothing'"), plan.UntilNothing},
		{with("sev", "vmsa = 'init2'"), plan.UntilSecret},
		{
			with("sev-es", "session = 's'\nowner-cert = 'c'") + "owner = ['x']\n" +
				"[confidential.sev-es]\nuntil = 'secret'",
			plan.UntilSecret,
		},
		{specOf("sev-snp"), plan.UntilNothing},
		{strings.Replace(latched("sev-snp", ""), "technology", "id-block = 'b'\ntechnology", 1), plan.UntilIDBlock},
		{specOf("tdx"), plan.UntilNothing},
		{mktmeSpec, plan.UntilNothing},
		{strings.Replace(mktmeSpec, " }", `, algorithm = "aes-xts-128" }`, 1), plan.UntilNothing},
	} {
		g, err := guestOf(c.text)
		if err != nil || g.Latch.Until != c.latch {
			t.Errorf("%s\n%v, want a guest whose latch waits for %s", c.text, err, c.latch)
		}
	}
}

// TestForeignKeys: a key of [confidential] is refused where the technology gives it no
// meaning, and accepted where it does.
func TestForeignKeys(t *testing.T) {
	for _, c := range []struct {
		key, value string
		valid      string // for these
	}{
		{"policy", "['0x10000001']", "sev sev-es sev-snp tdx"},
		{"owner-cert", "'f'", "sev sev-es"},
		{"session", "'f'", "sev sev-es"},
		{"vmsa", "'legacy'", "sev sev-es"},
		{"id-block", "'f'", "sev-snp"},
		{"id-auth", "'f'", "sev-snp"},
		{"host-data", "'" + strings.Repeat("00", 32) + "'", "sev-snp"},
		{"mrconfigid", "'" + strings.Repeat("00", 48) + "'", "tdx"},
		{"mrowner", "'" + strings.Repeat("00", 48) + "'", "tdx"},
		{"mrownerconfig", "'" + strings.Repeat("00", 48) + "'", "tdx"},
		{"quote-socket", "'f'", "tdx"},
		{"mktme", "{ object = 'o', handle-property = 'p' }", "mktme"},
	} {
		for _, tech := range tee.Names() {
			text := "[confidential]\ntechnology = '" + tech + "'\n"
			if tech == "mktme" && c.key != "mktme" {
				text += "mktme = { object = 'o', handle-property = 'p' }\n"
			}
			text += c.key + " = " + c.value + "\n[firmware]\nimage = 'f'\n"
			if tech != "none" {
				text += "[latch]\nuntil = 'nothing'\n"
			}
			_, err := guestOf(text)
			text = fmt.Sprint(err)
			foreign := strings.Contains(text, fmt.Sprintf("not valid for technology %q (only ", tech)) ||
				tech == "sev-snp" && strings.Contains(text, "has no sessions")
			if want := !slices.Contains(strings.Fields(c.valid), tech); foreign != want {
				t.Errorf("%s of %s: %v; refused as foreign: %t, want %t", c.key, tech, err, foreign, want)
			}
			if all := strings.ReplaceAll(c.valid, " ", ", "); foreign && tech != "sev-snp" &&
				!strings.Contains(err.Error(), all) {
				t.Errorf("%s of %s: %v, want it to name %s", c.key, tech, err, all)
			}
		}
	}
}

// TestKeysOfOneOfSeveral: where there is a choice, keys of each may be given.
func TestKeysOfOneOfSeveral(t *testing.T) {
	const text = `
cpu = "host"
[firmware]
image = "fw"
[confidential]
technology = ["sev-snp", "sev"]
session = "s"
owner-cert = "c"
[confidential.sev-snp]
policy = ["single-socket"]
cpu = "EPYC-v4"
until = "nothing"
[confidential.sev]
policy = ["no-debug"]
`
	s, err := tee.Parse([]byte(text), "vm.toml", "/specs")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, policy, cpu, latch string }{
		{"sev-snp", "single-socket", "EPYC-v4", plan.UntilNothing}, {"sev", "no-debug", "host", plan.UntilSecret},
	} {
		g, err := s.For(c.name)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := strings.Join(g.Confidential.Policy, ","); got != c.policy || g.CPU != c.cpu ||
			g.Latch.Until != c.latch || !g.Several() {
			t.Errorf("%s: policy %s, CPU %s, latch %s, a choice: %t, want %+v of several", c.name, got, g.CPU,
				g.Latch.Until, g.Several(), c)
		}
	}
	if got := s.Guest(); got.CPU != "host" || got.Latch.Until != "" {
		t.Errorf("the spec became %+v, want it unchanged", got)
	}
}

func TestTechnologiesThatAreAskedFor(t *testing.T) {
	for value, want := range map[string][]string{
		"'sev'": {"sev"}, "['tdx', 'sev-es']": {"tdx", "sev-es"}, "'none'": {"none"}, "['none']": {"none"},
		"'any-confidential'": {"sev-snp", "tdx", "sev-es", "sev"},
	} {
		s, err := tee.Parse([]byte("[confidential]\ntechnology = "+value), "vm.toml", "/")
		if err != nil || !slices.Equal(s.Asked(), want) {
			t.Errorf("%s: %v, want %q", value, err, want)
			continue
		}
		s.Asked()[0] = "changed"
		if !slices.Equal(s.Asked(), want) {
			t.Errorf("%s: the list can be changed from outside", value)
		}
	}
}

func TestPathsOfTechnologiesKeys(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", "/run/credentials/x")
	g := mustGuest(t, strings.Replace(specOf("sev"), `"session"`, `"credential:s"`, 1))
	if c := g.Confidential; c.OwnerCert != "/specs/cert" || c.Session != "/run/credentials/x/s" {
		t.Errorf("files %s and %s, want /specs/cert and the credential", c.OwnerCert, c.Session)
	}
	for _, key := range []string{"owner-cert", "session", "id-block", "id-auth", "quote-socket"} {
		_, err := tee.Parse([]byte("[confidential]\n"+key+" = \"a\\u0000\""), "vm.toml", "/")
		if err == nil || !strings.Contains(err.Error(), "a NUL character") {
			t.Errorf("%s: %v, want an error about a NUL character", key, err)
		}
		if key == "quote-socket" { // nothing of it is read
			continue
		}
		_, err = tee.Parse([]byte("[confidential]\n"+key+" = 'credential:..'"), "vm.toml", "/")
		if e := fault.As(err); e == nil || e.Key != "confidential."+key || e.Line != 2 ||
			!strings.Contains(e.Fix, "LoadCredential") {
			t.Errorf("%s: %v, want an error about it in line 2 that names LoadCredential", key, err)
		}
	}
}

func TestNamesOfSpecs(t *testing.T) {
	s, err := tee.Parse([]byte(specOf("sev")), "vm.toml", "/specs")
	if err != nil {
		t.Fatal(err)
	}
	other, err := s.Named("other")
	if err != nil || other.Name() != "other" || s.Name() != "vm" || other.File() != s.File() {
		t.Errorf("named %s, and %s before, %v, want other and vm of the same file", other.Name(), s.Name(), err)
	}
	if _, err := s.Named("a/b"); err == nil {
		t.Error("a spec is named a/b, want an error")
	}
}

func TestLoadASpec(t *testing.T) {
	file := filepath.Join(t.TempDir(), "web.toml")
	if err := os.WriteFile(file, []byte("[firmware]\nimage = 'fw'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := tee.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := s.Guest().Firmware.Image, filepath.Join(filepath.Dir(file), "fw"); s.Name() != "web" ||
		got != want {
		t.Errorf("spec %s with firmware %s, want web with %s", s.Name(), got, want)
	}
	if _, err := tee.Load(file + "x"); fault.As(err) == nil {
		t.Errorf("a file that is not there: %v, want an error of the launcher", err)
	}
}

// TestGuestsOfUnknownImages: what cannot be read lacks nothing.
func TestGuestsOfUnknownImages(t *testing.T) {
	g := mustGuest(t, specOf("sev-snp"))
	lacks := map[string]string{"sev-snp": "it has no SEV metadata"}
	for name, c := range map[string]struct {
		image *plan.Image
		want  string
	}{
		"no image": {nil, ""}, "an IGVM file": {&plan.Image{IGVM: true, Lacks: lacks}, ""},
		"one that lacks something": {
			&plan.Image{Lacks: lacks}, "it has no SEV metadata",
		}, "one that has all": {
			&plan.Image{}, "",
		},
	} {
		if got := g.LacksTables(c.image); got != c.want {
			t.Errorf("%s: lacks %q, want %q", name, got, c.want)
		}
	}
	if g.Traits().Name != host.SNP || g.Several() {
		t.Errorf("the guest is of %s, a choice: %t, want sev-snp without a choice", g.Traits().Name, g.Several())
	}
	if got := g.Model(); got != "EPYC-Milan-v1" {
		t.Errorf("CPU model %s, want EPYC-Milan-v1", got)
	}
}
