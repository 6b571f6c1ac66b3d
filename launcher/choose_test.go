package launcher

import (
	"errors"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// TestSlips are ways past a check that were found.
func TestSlips(t *testing.T) {
	for text, want := range map[string]string{
		specOf["sev"] + "[[device]]\ndriver = \"vhost-vsock-pci\"\niommu_platform = false\n": "has one of them switched off",
		specOf["tdx"] + "[[device]]\ndriver = \"pvscsi\"\n":                                  "no driver for SCSI",
		"[[device]]\ndriver = \"virtio-rng-pci\"\nmax-bytes = nan\n":                         "finite numbers",
		"[[device]]\ndriver = \"virtio-rng-pci\"\na = { b = [inf] }\n":                       "finite numbers",
		"[[object]]\nqom-type = \"rng-random\"\nid = \"x\"\nwhen = 2026-11-22\n":             "finite numbers",
	} {
		if _, err := ParseSpec([]byte(text), "vm.toml", "/"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n%v, want %q", text, err, want)
		}
	}
	spec, err := ParseSpec([]byte(specOf["sev-es"]+"[confidential.sev]\npolicy = [\"no-debug\", \"no-send\"]\n"), "vm.toml", "/")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewPlan(spec, machine(nil), testRoot); err == nil || !strings.Contains(err.Error(), "nobody asks for") {
		t.Errorf("a table that counts for nothing: %v", err)
	}
}

// TestPipeAsFirmware: nothing waits for who writes a pipe.
func TestPipeAsFirmware(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "fw"), 0o600); err != nil {
		t.Fatal(err)
	}
	spec, err := ParseSpec([]byte(specOf["sev-es"]), filepath.Join(dir, "vm.toml"), dir)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := NewPlan(spec, machine(nil), rundir.Root{Run: filepath.Join(dir, "run"), State: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	if ids := failedIDs(CheckPlan(plan)); !slices.Contains(ids, "files-readable") {
		t.Errorf("%v", ids)
	}
}

// TestChoiceOfHost: a host that refuses one technology may do the next; what is
// wrong with the spec leads to none.
func TestChoiceOfHost(t *testing.T) {
	const text = "name = \"vm\"\ncpu = \"EPYC-Milan-v1\"\n[firmware]\nimage = \"fw\"\n[confidential]\ntechnology = [\"sev-snp\", \"sev-es\"]\n[latch]\nuntil = \"nothing\"\n"
	spec, err := ParseSpec([]byte(text), "vm.toml", "/")
	if err != nil {
		t.Fatal(err)
	}
	for why, change := range map[string]func(*Facts){
		"check snp-iommu":        func(f *Facts) { f.Host.IOMMU.Passthrough = host.Yes },
		"check snp-kernel":       func(f *Facts) { f.Host.Kernel = "6.1.0" },
		"no such object":         func(f *Facts) { delete(f.Info.Objects, "sev-snp-guest") },
		"off":                    func(f *Facts) { f.Host.Technologies[2] = host.Technology{Name: "sev-snp", Usable: host.No, Why: "off"} },
		"it has no SEV metadata": func(f *Facts) { f.Firmware = &firmwareFacts{reset: true} },
		"":                       nil,
		"memory-backend-memfd":   func(f *Facts) { delete(f.Info.Objects, "memory-backend-memfd") },
		"the image demands":      func(f *Facts) { f.Sidecars = []Sidecar{{Technologies: []string{"sev-es"}, file: "x"}} },
	} {
		if why == "no such object" {
			why = "has no object sev-snp-guest"
		}
		facts := machine(change)
		facts.SlotDir = t.TempDir()
		plan, err := NewPlan(spec, facts, testRoot)
		if err != nil {
			t.Errorf("%s: %v", why, err)
			continue
		}
		want := TechnologySEVES
		if why == "" {
			want = TechnologySNP
		}
		if plan.Technology != want || !strings.Contains(plan.Choices[0].From, why) {
			t.Errorf("%s: %+v", why, plan.Choices[0])
		}
	}
	any, err := ParseSpec([]byte(strings.Replace(text, `["sev-snp", "sev-es"]`, `["sev-snp", "sev-es", "sev"]`, 1)), "vm.toml", "/")
	if err != nil {
		t.Fatal(err)
	}
	var none *ChoiceError
	if plan, err := NewPlan(any, machine(func(f *Facts) { f.SlotDir, f.Info, f.Host.SEV.SNPEnabled = t.TempDir(), recordedQEMU("7.2"), host.Yes }), testRoot); !errors.As(err, &none) {
		t.Errorf("on a host that runs SEV-SNP the choice falls to %+v, %v", plan, err)
	}
	// A slot that is taken is waited for, and no reason to take another technology.
	full := machine(func(f *Facts) { f.SlotDir, f.Slots = t.TempDir(), map[string]int{"sev-es": 0} })
	if plan, err := NewPlan(any, full, testRoot); err != nil || plan.Technology != TechnologySNP {
		t.Errorf("without a slot: %+v, %v", plan, err)
	}
	// Its own fault: an ID block of another policy.
	bad, err := ParseSpec([]byte(strings.Replace(text, "technology", "id-block = \"b\"\nid-auth = \"a\"\ntechnology", 1)), "vm.toml", "/")
	if err != nil {
		t.Fatal(err)
	}
	if plan, err := NewPlan(bad, machine(func(f *Facts) { f.SlotDir = t.TempDir(); f.IDBlock = make([]byte, 5) }), testRoot); err == nil {
		t.Errorf("a bad ID block leads to %s", plan.Technology)
	}
}

// TestDemandedByImage: defaults are those of the technology that the image asks for.
func TestDemandedByImage(t *testing.T) {
	const text = "[firmware]\nimage = \"fw\"\n[confidential]\nowner-cert = \"c\"\nsession = \"s\"\n[[disk]]\nimage = \"d\"\n"
	spec, err := ParseSpec([]byte(text), "vm.toml", "/")
	if err != nil {
		t.Fatal(err)
	}
	demand := func(f *Facts) { f.Sidecars = []Sidecar{{Technologies: []string{"sev"}, file: "d.vmlatch.toml"}} }
	plan, err := NewPlan(spec, machine(demand), testRoot)
	if err != nil || plan.Technology != TechnologySEV || plan.Latch != UntilSecret || !strings.Contains(plan.Choices[0].From, "d.vmlatch.toml") {
		t.Errorf("%+v, %v", plan, err)
	}
	if _, err := NewPlan(spec, machine(nil), testRoot); err == nil || !strings.Contains(err.Error(), "takes none") {
		t.Errorf("without the image's demand: %v", err)
	}
	plain, err := ParseSpec([]byte("[[disk]]\nimage = \"d\"\n[latch]\nuntil = \"nothing\"\n[firmware]\nimage = \"fw\"\n"), "vm.toml", "/")
	if err != nil {
		t.Fatal(err)
	}
	if plan, err := NewPlan(plain, machine(demand), testRoot); err != nil || plan.Latch != UntilNothing {
		t.Errorf("%+v, %v", plan, err)
	}
}

// TestExtraObjects: what devices need is let through, every way past the latch is not.
func TestExtraObjects(t *testing.T) {
	for kind, want := range map[string]bool{
		"rng-random": true, "iothread": true, "iommufd": true, "tls-creds-x509": true, "memory-backend-file": true,
		"qtest": false, "monitor-hmp": false, "sev-guest": false, "tdx-guest": false, "mktme-guest": false, "igvm-cfg": false, "x-remote-object": false, "vfio-user-server": false, "colo-compare": false,
	} {
		_, err := ParseSpec([]byte("[[object]]\nqom-type = \""+kind+"\"\nid = \"x\"\n"), "vm.toml", "/")
		if (err == nil) != want {
			t.Errorf("%s: %v", kind, err)
		}
	}
	if _, err := ParseSpec([]byte("[[object]]\nqom-type = \"memory-backend-ram\"\nid = \"ram\"\n"), "vm.toml", "/"); err == nil {
		t.Error("another object may have the id of the guest's memory")
	}
}

// FuzzSidecar: a disk image's demands come with the image.
func FuzzSidecar(f *testing.F) {
	f.Add("firmware = \"uefi\"\ntechnologies = [\"sev-snp\"]\n[policy]\nsev-snp = [\"smt\"]\n", "any-confidential")
	f.Add("[policy]\nsev = [\"0x3\"]\n", "sev")
	f.Fuzz(func(t *testing.T, text, technology string) {
		c := Sidecar{file: "x"}
		if _, err := decodeTOML([]byte(text), "x", &c); err != nil || c.validate() != nil {
			return
		}
		spec, err := ParseSpec([]byte("[firmware]\nimage = \"fw\"\n[confidential]\ntechnology = "+strconv.Quote(technology)+"\n[latch]\nuntil = \"nothing\"\n[[disk]]\nimage = \"d\"\n"), "vm.toml", "/")
		if err != nil {
			return
		}
		facts := machine(func(f *Facts) { f.Sidecars, f.SlotDir = []Sidecar{c}, t.TempDir() })
		plan, err := NewPlan(spec, facts, testRoot)
		if err == nil && len(c.Technologies) > 0 && !slices.Contains(c.Technologies, plan.Technology) {
			t.Errorf("%q became %s", text, plan.Technology)
		}
	})
}

// FuzzParseOptions: a command line taken apart is what it was made of.
func FuzzParseOptions(f *testing.F) {
	f.Add("q35,a=b,,c,d=e", "{\"qom-type\":\"x\"}")
	f.Fuzz(func(t *testing.T, a, b string) {
		o := parseOptions([]string{"qemu", "-machine", a, "-object", b, "-S"})
		_, _ = o.machine("a"), o.objects()
		if !o.flags["-S"] && a != "-S" && b != "-S" {
			t.Errorf("%q %q: -S is lost", a, b)
		}
	})
}
