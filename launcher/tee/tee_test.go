package tee_test

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/launcher"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/spec"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

const (
	snpSpec = testhost.FullSNP
	sevSpec = testhost.FullSEV
)

func TestSpecErrors(t *testing.T) {
	sevWith := func(old, replacement string) string { return strings.Replace(sevSpec, old, replacement, 1) }
	for name, c := range map[string]struct{ spec, want string }{
		"no TOML":         {"name = ", "vm.toml:1:"},
		"wrong type":      {"cpus = \"two\"", "vm.toml:1:"},
		"name":            {`name = "a/b"`, "must be 1 to 63"},
		"cpus":            {"cpus = 0", "must be 1 to 512"},
		"memory small":    {`memory = "1MiB"`, "at least 16MiB"},
		"memory unit":     {`memory = "4G"`, "write 4GiB"},
		"memory bare":     {`memory = "512"`, "has no unit"},
		"memory float":    {`memory = "1.5GiB"`, "whole number"},
		"memory overflow": {`memory = "99999999999TiB"`, "too large"},
		"accel":           {`accel = "xen"`, "auto, kvm or tcg"},
		"technology":      {"[confidential]\ntechnology = \"sgx\"", "must be one of none, sev"},

		"plain policy": {
			"[confidential]\npolicy = ['no-debug']", `for technology "none" (only sev, sev-es, sev-snp, tdx)`,
		},

		"plain latch":    {"[latch]\nuntil = \"secret\"", "a plain VM is not measured"},
		"initrd alone":   {"[kernel]\ninitrd = \"x\"", "need a kernel"},
		"disk image":     {"[[disk]]\nformat = \"raw\"", "image is missing"},
		"disk format":    {"[[disk]]\nimage = \"x\"\nformat = \"vmdk\"", "must be raw or qcow2"},
		"network":        {"[[network]]\nmode = \"bridged\"", "must be user"},
		"firmware type":  {"[firmware]\ntype = \"efi\"", "must be bios or uefi"},
		"NUL":            {"[kernel]\nimage = \"x\"\ncmdline = \"a\\u0000b\"", "NUL"},
		"policy word":    {sevWith(`"no-debug"`, `"nodebug"`), "unknown word"},
		"policy debug":   {sevWith(`"no-debug", `, ``), "lacks no-debug"},
		"policy es":      {sevWith(`"sev"]`, `"es"]`), "sev-es"},
		"session alone":  {sevWith(`owner-cert = "vm.godh"`, ""), "go together"},
		"no firmware":    {sevWith(`image = "OVMF.amdsev.fd"`, ""), "needs firmware that knows sev"},
		"vars":           {sevWith("[kernel]", "vars = \"v\"\n[kernel]"), "is not measured"},
		"tcg":            {sevWith("memory", "accel = \"tcg\"\nmemory"), "cannot encrypt"},
		"machine":        {sevWith("memory", "machine = \"pc\"\nmemory"), "need q35"},
		"until":          {sevSpec + "[latch]\nuntil = \"whenever\"", `must be "secret" or "nothing"`},
		"owner, nothing": {sevSpec + "[latch]\nuntil = \"nothing\"\nowner = [\"x\"]", "not used with"},
		"timeout":        {"[latch]\ntimeout = \"-1s\"", "must be positive"},
		"hashes no kernel": {
			"firmware.image = 'x'\nlatch.until = 'nothing'\n[confidential]\ntechnology = 'sev'\nkernel-hashes = true",
			"no kernel to measure",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := launcher.ParseSpec([]byte(c.spec), "vm.toml", "/specs")
			var typed *fault.Error
			if !errors.As(err, &typed) || !strings.Contains(err.Error(), c.want) ||
				!strings.HasPrefix(err.Error(), "vm.toml") {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestUnknownKeys(t *testing.T) {
	for spec, want := range map[string]fault.Error{
		"nme = \"x\"": {Line: 1, Key: "nme", Fix: `did you mean "name"?`},
		"name = \"x\"\n[firmware]\nimgae = \"x\"": {Line: 3, Key: "firmware.imgae", Fix: `did you mean "image"?`},
		"[confidental]\ntechnology = \"sev\"":     {Line: 1, Key: "confidental", Fix: `did you mean "confidential"?`},
		"zzzz = 1":                                {Line: 1, Key: "zzzz"},

		"[confidential]\npolcy = []": {Line: 2, Key: "confidential.polcy", Fix: `did you mean "policy"?`},

		"disk = [{image = \"x\", formt = \"raw\"}]": {Line: 1, Key: "disk.formt", Fix: `did you mean "format"?`},
	} {
		_, err := launcher.ParseSpec([]byte(spec), "f", "/")
		var got *fault.Error
		if !errors.As(err, &got) || got.Line != want.Line || got.Fix != want.Fix ||
			!strings.HasPrefix(got.Key, want.Key) {
			t.Errorf("%q: %+v, want %+v", spec, got, want)
		}
	}
}

// TestKeysHaveOneCase: a key in another case is another key, and what it says must
// not count.
func TestKeysHaveOneCase(t *testing.T) {
	for text, near := range map[string]string{
		"[confidential]\nTechnology = \"sev-snp\"\n": "technology",

		"NAME = \"x\"\n":            "name",
		"[[Disk]]\nimage = \"x\"\n": "disk",
		"[[disk]]\nImage = \"x\"\n": "image",

		"[confidential.SEV-SNP]\nuntil = \"nothing\"\n": "sev-snp",
	} {
		_, err := launcher.ParseSpec([]byte(text), "f", "/")
		var got *fault.Error
		if !errors.As(err, &got) || got.Fix != `did you mean "`+near+`"?` ||
			!strings.Contains(err.Error(), "unknown key") {
			t.Errorf("%q: %v, near %+v", text, err, got)
		}
	}
	_, err := launcher.ParseSpec([]byte("[[device]]\ndriver = 'virtio-rng-pci'\nMAC = 'x'\n"), "f", "/")
	if err != nil {
		t.Errorf("properties are QEMU's: %v", err)
	}
}

func TestHostDecides(t *testing.T) {
	s, err := launcher.ParseSpec([]byte(sevSpec), "vm.toml", "/specs")
	if err != nil {
		t.Fatal(err)
	}
	plain, err := launcher.ParseSpec([]byte(`accel = "kvm"`), "p.toml", "/specs")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		spec  *tee.Spec
		facts *plan.Facts
		want  string
	}{
		"no SEV": {s, testhost.Facts(func(f *plan.Facts) {
			f.Host.Technologies[0] = host.Technology{Name: "sev", Usable: host.No, Why: "no such feature"}
		}), "encrypt memory with sev: no such feature"},
		"no KVM":             {s, testhost.Facts(testhost.NoKVM("gone")), "encrypt memory with sev: gone"},
		"plain asks for KVM": {plain, testhost.Facts(testhost.NoKVM("gone")), "use KVM: gone"},
	} {
		if _, err := launcher.NewPlan(c.spec, c.facts, testhost.Root()); !errors.Is(
			err,
			fault.ErrHost,
		) ||
			!strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	emulated := testhost.Facts(func(f *plan.Facts) { f.Emulator = []string{"swtee", "--"} })
	if _, err := launcher.NewPlan(plain, emulated, testhost.Root()); err == nil {
		t.Error("a plain VM is emulated")
	}
}

// TestSNPRefusals: specs of SEV-SNP guests that cannot work or would not be secure.
func TestSNPRefusals(t *testing.T) {
	for change, want := range map[string]string{
		`until = "nothing"|until = "id-block"`:          "none is given",
		`until = "nothing"|until = "secret"`:            "no measurement while the guest is paused",
		`until = "nothing"|`:                            "no measurement while the guest is paused",
		`until = "nothing"|until = "later"`:             "must be",
		`"abi=1.55"|"debug"`:                            "the host could read",
		`"abi=1.55"|"no-debug"`:                         "unknown word",
		`"abi=1.55"|"abi=1"`:                            "abi=MAJOR.MINOR",
		`"EPYC-Genoa"|"host"`:                           "are measured",
		`host-data = "01|host-data = "0`:                "32 bytes in hex",
		`kernel-hashes = true|session = "s"`:            "no sessions",
		`kernel-hashes = true|id-block = "s"`:           "go together",
		`technology = "sev-snp"|technology = "sev"`:     "policy",
		`name = "vm"|name = "vm"` + "\naccel = \"tcg\"": "tcg cannot encrypt",
	} {
		old, to, _ := strings.Cut(change, "|")
		_, err := launcher.ParseSpec(
			[]byte(strings.Replace(snpSpec, old, to, 1)),
			"vm.toml",
			"/specs",
		)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", change, err, want)
		}
	}
	s, err := launcher.ParseSpec([]byte(snpSpec), "vm.toml", "/specs")
	if err != nil {
		t.Fatal(err)
	}
	igvm := testhost.Facts(func(f *plan.Facts) { f.IGVM = true })
	if _, err := launcher.NewPlan(s, igvm, testhost.Root()); err == nil ||
		!errors.Is(err, fault.ErrHost) {
		t.Errorf("an IGVM file for a QEMU that cannot load it: %v", err)
	}
	// QEMU would take policy and ID block from the file, and drop the owner's.
	bound := strings.NewReplacer(
		"kernel-hashes = true", "id-block = 'b'\nid-auth = 'a'", `until = "nothing"`, `until = "id-block"`,
		"[kernel]", "", `image = "k"`, "",
	).
		Replace(snpSpec)
	if s, err = launcher.ParseSpec([]byte(bound), "vm.toml", "/specs"); err != nil {
		t.Fatal(err)
	}
	if _, err := launcher.NewPlan(s, testhost.Facts(testhost.WithIGVM), testhost.Root()); err == nil ||
		!strings.Contains(err.Error(), "ID block from the IGVM file") {
		t.Errorf("an ID block next to an IGVM file: %v", err)
	}
}

func FuzzParseSpec(f *testing.F) {
	f.Add([]byte(sevSpec))
	f.Add([]byte("[[disk]]\nimage = 'x'"))
	facts := testhost.Facts()
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := launcher.ParseSpec(b, "fuzz.toml", "/specs")
		if err != nil {
			return
		}
		p, err := launcher.NewPlan(s, facts, testhost.Root())
		if err != nil {
			return
		}
		for _, a := range p.Argv {
			if strings.ContainsRune(a, 0) {
				t.Fatalf("NUL in %q", a)
			}
		}
	})
}

// TestSlips are ways past a check that were found.
func TestSlips(t *testing.T) {
	specs := testhost.Specs()
	for text, want := range map[string]string{
		specs["sev"] + "[[device]]\ndriver = 'vhost-vsock-pci'\niommu_platform = false\n": "one of them switched off",
		specs["tdx"] + "[[device]]\ndriver = 'pvscsi'\n":                                  "no driver for SCSI",
		"[[device]]\ndriver = 'virtio-rng-pci'\nmax-bytes = nan\n":                        "finite numbers",
		"[[device]]\ndriver = 'virtio-rng-pci'\na = { b = [inf] }\n":                      "finite numbers",
		"[[object]]\nqom-type = 'rng-random'\nid = 'x'\nwhen = 2026-11-22\n":              "finite numbers",
	} {
		if _, err := launcher.ParseSpec([]byte(text), "vm.toml", "/"); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%s\n%v, want %q", text, err, want)
		}
	}
	s, err := launcher.ParseSpec(
		[]byte(
			testhost.Specs()["sev-es"]+"[confidential.sev]\npolicy = [\"no-debug\", \"no-send\"]\n",
		),
		"vm.toml",
		"/",
	)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := launcher.NewPlan(s, testhost.Facts(), testhost.Root()); err == nil ||
		!strings.Contains(err.Error(), "is not asked for here") {
		t.Errorf("a table that counts for nothing: %v", err)
	}
}

// TestDemandedByImage: defaults are those of the technology that the image asks for.
func TestDemandedByImage(t *testing.T) {
	const text = "firmware.image = 'fw'\n[confidential]\nowner-cert = 'c'\nsession = 's'\n[[disk]]\nimage = 'd'\n"
	s, err := launcher.ParseSpec([]byte(text), "vm.toml", "/")
	if err != nil {
		t.Fatal(err)
	}
	demand := func(f *plan.Facts) {
		f.Demands = []*spec.Demands{
			{Technologies: []string{"sev"}, File: &spec.File{Path: "d.vmlatch.toml"}},
		}
	}
	p, err := launcher.NewPlan(s, testhost.Facts(demand), testhost.Root())
	if err != nil || p.Technology != host.SEV || p.Latch != plan.UntilSecret ||
		!strings.Contains(p.Choices[0].From, "d.vmlatch.toml") {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := launcher.NewPlan(s, testhost.Facts(), testhost.Root()); err == nil ||
		!strings.Contains(err.Error(), "not valid for") {
		t.Errorf("without the image's demand: %v", err)
	}
	plain, err := launcher.ParseSpec(
		[]byte(
			"[[disk]]\nimage = \"d\"\n[latch]\nuntil = \"nothing\"\n[firmware]\nimage = \"fw\"\n",
		),
		"vm.toml",
		"/",
	)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := launcher.NewPlan(plain, testhost.Facts(demand), testhost.Root()); err != nil ||
		p.Latch != plan.UntilNothing {
		t.Errorf("%+v, %v", p, err)
	}
}

// TestExtraObjects: what devices need is let through, every way past the latch is not.
func TestExtraObjects(t *testing.T) {
	for kind, want := range map[string]bool{
		"rng-random": true, "iothread": true, "iommufd": true, "tls-creds-x509": true, "memory-backend-file": true,
		"qtest": false, "monitor-hmp": false, "sev-guest": false, "tdx-guest": false, "mktme-guest": false,
		"igvm-cfg": false, "x-remote-object": false, "vfio-user-server": false, "colo-compare": false,
	} {
		_, err := launcher.ParseSpec(
			[]byte("[[object]]\nqom-type = \""+kind+"\"\nid = \"x\"\n"),
			"vm.toml",
			"/",
		)
		if (err == nil) != want {
			t.Errorf("%s: %v", kind, err)
		}
	}
	const ram = "[[object]]\nqom-type = 'memory-backend-ram'\nid = 'ram'\n"
	if _, err := launcher.ParseSpec([]byte(ram), "vm.toml", "/"); err == nil {
		t.Error("another object may have the id of the guest's memory")
	}
}

// FuzzSidecar: a disk image's demands come with the image.
func FuzzSidecar(f *testing.F) {
	f.Add(
		"firmware = \"uefi\"\ntechnologies = [\"sev-snp\"]\n[policy]\nsev-snp = [\"smt\"]\n",
		"any-confidential",
	)
	f.Add("[policy]\nsev = [\"0x3\"]\n", "sev")
	f.Fuzz(func(t *testing.T, text, technology string) {
		d, err := spec.ParseDemands([]byte(text), "x")
		if err != nil || tee.CheckDemands(d) != nil {
			return
		}
		s, err := launcher.ParseSpec(
			[]byte(
				"[firmware]\nimage = \"fw\"\n[confidential]\ntechnology = "+strconv.Quote(
					technology)+"\n[latch]\nuntil = \"nothing\"\n[[disk]]\nimage = \"d\"\n",
			),
			"vm.toml",
			"/",
		)
		if err != nil {
			return
		}
		facts := testhost.Facts(
			func(f *plan.Facts) { f.Demands, f.SlotDir = []*spec.Demands{d}, t.TempDir() },
		)
		p, err := launcher.NewPlan(s, facts, testhost.Root())
		if err == nil && len(d.Technologies) > 0 && !slices.Contains(d.Technologies, p.Technology) {
			t.Errorf("%q became %s", text, p.Technology)
		}
	})
}

func TestCredentialsInSpecs(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	text := "firmware.image = 'f'\n" +
		"[confidential]\ntechnology = 'sev'\nowner-cert = 'a'\nsession = 'credential:session'\n"
	_, err := launcher.ParseSpec([]byte(text), "g.toml", "/specs")
	if e := fault.As(err); e == nil || e.Key != "confidential.session" ||
		!strings.Contains(e.Fix, "LoadCredential") {
		t.Errorf("error %v, want one about confidential.session with the unit's fix", err)
	}
}
