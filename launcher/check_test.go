package launcher

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// checkCase makes one check fail: by a change of the spec's text, of the host, of
// the plan's command line, or of files.
type checkCase struct {
	tech    string            // which spec to change
	replace [2]string         // in the spec's text
	add     string            // to the spec's text
	host    func(*Facts)      //
	argv    [2]string         // in the plan's command line
	files   map[string]string // in the spec's directory
	plan    func(*Plan)
	refused bool // already when the spec is read
}

// specOf are specs that no check finds fault with.
var specOf = map[string]string{
	"none": `
name = "vm"
`,
	"sev": `
name = "vm"
memory = "64MiB"
[firmware]
image = "fw"
[kernel]
image = "k"
[confidential]
technology = "sev"
owner-cert = "cert"
session = "session"
`,
	"sev-es": `
name = "vm"
memory = "64MiB"
cpu = "EPYC-Milan-v1"
[firmware]
image = "fw"
[confidential]
technology = "sev-es"
[latch]
until = "nothing"
`,
	"sev-snp": `
name = "vm"
memory = "64MiB"
cpu = "EPYC-Milan-v1"
[firmware]
image = "fw"
[kernel]
image = "k"
[confidential]
technology = "sev-snp"
[latch]
until = "nothing"
`,
	"tdx": `
name = "vm"
memory = "64MiB"
machine = "pc-q35-11.1"
[firmware]
image = "fw"
[confidential]
technology = "tdx"
quote-socket = "qgs"
[latch]
until = "nothing"
`,
}

// checkCases has a way to fail for every check, by its id.
var checkCases = map[string]checkCase{
	"machine-q35":            {tech: "sev", add: "", replace: [2]string{`name = "vm"`, "name = \"vm\"\nmachine = \"pc\""}, refused: true},
	"no-variable-store":      {tech: "sev", replace: [2]string{`image = "fw"`, "image = \"fw\"\nvars = \"v\""}, refused: true},
	"kernel-hashes-kernel":   {tech: "sev-es", replace: [2]string{`technology`, "kernel-hashes = true\ntechnology"}, refused: true},
	"kernel-measured":        {tech: "sev", replace: [2]string{`technology`, "kernel-hashes = false\ntechnology"}},
	"sev-policy-debug":       {tech: "sev", replace: [2]string{`technology`, "policy = [\"no-key-sharing\"]\ntechnology"}, refused: true},
	"sev-policy-key-sharing": {tech: "sev", replace: [2]string{`technology`, "policy = [\"no-debug\"]\ntechnology"}},
	"session-pair":           {tech: "sev", replace: [2]string{`owner-cert = "cert"`, ""}, refused: true},
	"id-block-pair":          {tech: "sev-snp", replace: [2]string{`technology`, "id-block = \"b\"\ntechnology"}, refused: true},
	"snp-policy-debug":       {tech: "sev-snp", replace: [2]string{`technology`, "policy = [\"smt\", \"debug\"]\ntechnology"}, refused: true},
	"snp-policy-migration":   {tech: "sev-snp", replace: [2]string{`technology`, "policy = [\"smt\", \"migrate\"]\ntechnology"}, refused: true},
	"cpu-model-named":        {tech: "sev-snp", replace: [2]string{`"EPYC-Milan-v1"`, `"host,+avx"`}, refused: true},
	"cpu-model-versioned":    {tech: "sev-es", replace: [2]string{`"EPYC-Milan-v1"`, `"EPYC-Milan"`}},
	"tdx-attributes":         {tech: "tdx", replace: [2]string{`technology`, "policy = [\"pks\"]\ntechnology"}, refused: true},
	"tdx-cpu-host":           {tech: "tdx", replace: [2]string{`name = "vm"`, "name = \"vm\"\ncpu = \"EPYC-v4\""}, refused: true},
	"tdx-hugepages":          {tech: "tdx", add: "[memory-backend]\nhugepages = \"2MiB\"\n"},
	"private-memory-backend": {tech: "sev-snp", add: "[memory-backend]\nshare = false\n", refused: true},
	"private-memory-twice":   {tech: "sev-snp", add: "[memory-backend]\nprealloc = true\n"},
	"virtio-dma":             {tech: "sev", add: "[[device]]\ndriver = \"virtio-rng-pci\"\niommu_platform = false\n", refused: true},
	"extra-objects":          {tech: "none", add: "[[object]]\nqom-type = \"monitor-qmp\"\nid = \"m\"\n", refused: true},
	"no-hotplug":             {tech: "sev-snp", add: "[[device]]\ndriver = \"nvdimm\"\n", refused: true},
	"no-loader":              {tech: "sev-snp", add: "[[device]]\ndriver = \"loader\"\nfile = \"x\"\n", refused: true},
	"no-balloon":             {tech: "sev", add: "[[device]]\ndriver = \"virtio-balloon-pci\"\n"},
	"no-viommu":              {tech: "sev", add: "[[device]]\ndriver = \"intel-iommu\"\n"},
	"vfio-iommufd":           {tech: "sev-snp", add: "[[device]]\ndriver = \"vfio-pci\"\nhost = \"01:00.0\"\n"},
	"vtpm-evidence":          {tech: "sev-snp", add: "[[device]]\ndriver = \"tpm-crb\"\n"},
	"tdx-boot-disk":          {tech: "tdx", add: "[[device]]\ndriver = \"virtio-scsi-pci\"\n", refused: true},
	"option-roms":            {tech: "sev", add: "[[device]]\ndriver = \"e1000e\"\n"},

	"technology-usable": {tech: "sev-snp", host: func(f *Facts) { f.Host.Technologies[2] = host.Technology{Name: "sev-snp", Usable: host.No, Why: "off"} }},
	"qemu-object":       {tech: "sev-snp", host: func(f *Facts) { f.Info = recordedQEMU("7.2") }},
	"cpu-model-known":   {tech: "sev-es", replace: [2]string{`"EPYC-Milan-v1"`, `"EPYC-Naples-v9"`}},
	"vcpu-limit":        {tech: "sev-es", replace: [2]string{`name = "vm"`, "name = \"vm\"\ncpus = 300"}, host: func(f *Facts) { f.Info.MaxCPUs["q35"] = 288 }},
	"free-slots":        {tech: "sev", host: func(f *Facts) { f.Host.Slots[0].InUse = 410 }},
	"memory-lock":       {tech: "sev", host: func(f *Facts) { f.MaxLock = 8 << 20 }},
	"memory-available":  {tech: "none", host: func(f *Facts) { f.Host.MemFree = 32 << 20 }},
	"hugepages-free":    {tech: "none", add: "[memory-backend]\nhugepages = \"2MiB\"\n", host: func(f *Facts) { f.Host.HugePages = map[uint64]uint64{2 << 20: 31} }},
	"es-on-snp-host":    {tech: "sev-es", host: func(f *Facts) { f.Host.SEV.SNPEnabled = host.Yes }},
	"vmsa-features":     {tech: "sev-es", host: func(f *Facts) { f.Host.SEV.DebugSwap = host.Yes }},
	"snp-policy-smt":    {tech: "sev-snp", replace: [2]string{`technology`, "policy = [\"single-socket\"]\ntechnology"}},
	"snp-policy-support": {
		tech: "sev-snp", replace: [2]string{`technology`, "policy = [\"smt\", \"ciphertext-hiding\"]\ntechnology"},
		host: func(f *Facts) { f.Host.SEV.CiphertextHiding = 0 },
	},
	"snp-iommu":         {tech: "sev-snp", host: func(f *Facts) { f.Host.IOMMU.Passthrough = host.Yes }},
	"snp-firmware":      {tech: "sev-snp", host: func(f *Facts) { f.Host.SEV.SNPAPI = "1.49" }},
	"snp-kernel":        {tech: "sev-snp", host: func(f *Facts) { f.Host.Kernel = "6.10.14" }},
	"ciphertext-hiding": {tech: "sev-snp", host: func(f *Facts) { f.Host.SEV.CiphertextHiding = 0 }},
	"tdx-kernel":        {tech: "tdx", host: func(f *Facts) { f.Host.Kernel = "6.12.1" }},
	"tdx-module":        {tech: "tdx", host: func(f *Facts) { f.Host.TDX.Initialized = host.No }},
	"tdx-quote-service": {tech: "tdx", replace: [2]string{`"qgs"`, `"missing"`}},
	"machine-pinned":    {tech: "tdx", replace: [2]string{`machine = "pc-q35-11.1"`, ``}},
	"name-free":         {tech: "none", plan: func(p *Plan) { _, _ = p.Dirs.Create(p.Name) }},

	"directories":        {tech: "none", plan: func(p *Plan) { p.Dirs.State = "/dev/null/state" }},
	"files-readable":     {tech: "sev", files: map[string]string{"k": "-"}},
	"firmware-stateless": {tech: "sev-snp", argv: [2]string{"q35,", "q35,pflash0=code,"}},
	"firmware-knows":     {tech: "sev-snp", files: map[string]string{"fw": "no table"}},
	"kernel-hashes-area": {tech: "sev", files: map[string]string{"fw": "no table"}},
	"secret-area":        {tech: "sev", files: map[string]string{"fw": "no table"}},
	"igvm-alone":         {tech: "sev-snp", argv: [2]string{"q35,", "q35,igvm-cfg=igvm0,"}},
	"session-files":      {tech: "sev", files: map[string]string{"session": "AAAA"}},
	"cbitpos":            {tech: "sev", argv: [2]string{`"cbitpos":51`, `"cbitpos":47`}},
	"reduced-phys-bits":  {tech: "sev", argv: [2]string{`"reduced-phys-bits":1`, `"reduced-phys-bits":6`}},
	"sev-policy-es":      {tech: "sev-es", argv: [2]string{`"policy":7`, `"policy":3`}},
	"vm-type-explicit":   {tech: "sev-es", argv: [2]string{`"legacy-vm-type":"off",`, ``}},
	"id-block-size":      {tech: "sev-snp", host: func(f *Facts) { f.IDBlock, f.IDAuth = make([]byte, 96), make([]byte, 4095) }, plan: func(p *Plan) { p.spec.Confidential.IDBlock = "b" }},
	"smm-off":            {tech: "sev-snp", argv: [2]string{"smm=off", "smm=on"}},
	"irqchip":            {tech: "sev-es", argv: [2]string{"smm=off", "smm=off,kernel-irqchip=split"}},
	"tdx-machine":        {tech: "tdx", argv: [2]string{"hpet=off", "hpet=on"}},
	"private-memory":     {tech: "tdx", argv: [2]string{`"share":true`, `"share":false`}},
	"memory-not-locked":  {tech: "sev-snp", plan: func(p *Plan) { p.MemoryLock = 1 << 30 }},
	"machine-defaults":   {tech: "sev", argv: [2]string{"mem-merge=off", "mem-merge=on"}},
	"no-reboot":          {tech: "sev", argv: [2]string{"-no-reboot", "-nodefaults"}},
	"paused-start":       {tech: "sev", argv: [2]string{"-S", "-nodefaults"}},
	"fixed-size":         {tech: "sev-snp", plan: func(p *Plan) { p.Argv[slices.Index(p.Argv, "-smp")+1] = "1,maxcpus=4" }},
	"one-monitor":        {tech: "sev", plan: func(p *Plan) { p.Argv = append(p.Argv, "-monitor", "stdio") }},
	"disks-private":      {tech: "sev", add: "[[disk]]\nimage = \"disk\"\n", files: map[string]string{"disk": "x"}},
}

// amdsev is a firmware with everything; tests that need it skip without.
func amdsev(t *testing.T) string {
	p, err := filepath.Abs("../.cache/guest/OVMF.amdsev.fd")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(p); err != nil {
		t.Skipf("%v: run make setup", err)
	}
	return p
}

// tdxFirmware is Debian's OVMF, which has TDX metadata.
const tdxFirmware = "/usr/share/ovmf/OVMF.fd"

// specDir has the files of a spec.
func specDir(t *testing.T, tech string, c checkCase) string {
	t.Helper()
	dir := t.TempDir()
	cert, session := strings.Repeat("A", 2084/3*4+4), strings.Repeat("A", 128/3*4+4)
	files := map[string]string{"k": "kernel", "cert": cert[:len(cert)-1] + "=", "session": session[:len(session)-1] + "="}
	for name, text := range c.files {
		files[name] = text
	}
	for name, text := range files {
		if text == "-" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if c.files["disk"] != "" {
		if err := os.Chmod(filepath.Join(dir, "disk"), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if c.files["fw"] == "" {
		image := amdsev(t)
		if tech == "tdx" {
			image = tdxFirmware
			if _, err := os.Stat(image); err != nil {
				t.Skipf("%v: run make setup", err)
			}
		}
		if err := os.Symlink(image, filepath.Join(dir, "fw")); err != nil {
			t.Fatal(err)
		}
	}
	l, err := listen(filepath.Join(dir, "qgs"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return dir
}

// look makes all checks of a case. Of a spec that is refused when it is read there
// is the one result that refuses it.
func (c checkCase) look(t *testing.T) (results []CheckResult, refused bool) {
	t.Helper()
	dir := specDir(t, c.tech, c)
	text := specOf[c.tech]
	if c.replace[0] != "" {
		if !strings.Contains(text, c.replace[0]) {
			t.Fatalf("the spec has no %q", c.replace[0])
		}
		text = strings.Replace(text, c.replace[0], c.replace[1], 1)
	}
	spec, err := ParseSpec([]byte(text+c.add), filepath.Join(dir, "vm.toml"), dir)
	if r, ok := resultOf(err); ok {
		return []CheckResult{r}, true
	}
	if err != nil {
		t.Fatal(err)
	}
	facts := machine(nil)
	facts.SlotDir = filepath.Join(dir, "run/.slots")
	facts.Host.Slots[1].InUse = 5
	facts.Host.Slots = append(facts.Host.Slots, host.Pool{Name: "tdx", Technologies: []string{"tdx"}, Total: 63, InUse: -1})
	plan, err := NewPlan(spec, facts, rundir.Root{Run: filepath.Join(dir, "run"), State: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	if c.host != nil {
		c.host(&plan.facts)
	}
	if c.argv[0] != "" {
		changed := false
		for i, a := range plan.Argv {
			if n := strings.Replace(a, c.argv[0], c.argv[1], 1); n != a {
				plan.Argv[i], changed = n, true
			}
		}
		if !changed {
			t.Fatalf("the command line has no %q: %q", c.argv[0], plan.Argv)
		}
	}
	if c.plan != nil {
		c.plan(plan)
	}
	return CheckPlan(plan), false
}

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

func failedIDs(results []CheckResult) (ids []string) {
	for _, r := range results {
		if r.Verdict == CheckFailed {
			ids = append(ids, r.ID)
		}
	}
	return ids
}

// TestChecks: each check fails for its own reason, and there is none without one.
func TestChecks(t *testing.T) {
	known := map[string]Check{}
	for _, c := range Checks() {
		if _, twice := known[c.ID]; twice {
			t.Errorf("%s stands in the table twice", c.ID)
		}
		known[c.ID] = c
		if c.Cause == "" || c.Fix == "" || c.Source == "" || c.Severity == "" || c.look == nil {
			t.Errorf("%s: a field is missing", c.ID)
		}
		if _, ok := checkCases[c.ID]; !ok {
			t.Errorf("%s: nothing makes it fail", c.ID)
		}
	}
	for id, c := range checkCases {
		t.Run(id, func(t *testing.T) {
			check, ok := known[id]
			if !ok {
				t.Fatal("no such check")
			}
			results, refused := c.look(t)
			if refused != c.refused {
				t.Errorf("refused early: %t, %+v", refused, results)
			}
			i := slices.IndexFunc(results, func(r CheckResult) bool { return r.ID == id })
			if i < 0 || results[i].Verdict != CheckFailed {
				t.Fatalf("it does not fail; these do: %v (%+v)", failedIDs(results), results[max(i, 0)])
			}
			if results[i].Refuses() != (check.Severity != Warn) {
				t.Errorf("refuses: %t, severity %s", results[i].Refuses(), check.Severity)
			}
		})
	}
}

// TestChecksPass: nothing is wrong with good specs on a good host.
func TestChecksPass(t *testing.T) {
	for tech := range specOf {
		t.Run(tech, func(t *testing.T) {
			results, refused := checkCase{tech: tech}.look(t)
			if ids := failedIDs(results); refused || len(ids) > 0 {
				t.Errorf("%v: %+v", ids, results)
			}
			for _, r := range results {
				if r.Verdict == CheckUnknown {
					t.Errorf("%s: unknown: %s", r.ID, r.Detail)
				}
			}
		})
	}
}

// TestUnknownRefusesNothing: what a user cannot read is no reason to refuse.
func TestUnknownRefusesNothing(t *testing.T) {
	blind := func(f *Facts) {
		for i := range f.Host.Technologies {
			f.Host.Technologies[i].Usable = host.Unknown
		}
		f.Host.SMT, f.Host.IOMMU = host.Unknown, host.IOMMU{Present: host.Yes, Passthrough: host.Unknown}
		f.Host.SEV.SNPEnabled, f.Host.SEV.DebugSwap, f.Host.SEV.SNPAPI = host.Unknown, host.Unknown, ""
		f.Host.TDX.Initialized, f.Host.Slots, f.Host.MemFree = host.Unknown, nil, 0
	}
	for tech := range specOf {
		results, _ := checkCase{tech: tech, host: blind}.look(t)
		for _, r := range results {
			if r.Refuses() {
				t.Errorf("%s: %s refuses: %s", tech, r.ID, r.Detail)
			}
		}
	}
}
