package check_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/launcher/check"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// TestChecksAtTheirLimits: what just passes, what just fails, and what a check is not
// about.
func TestChecksAtTheirLimits(t *testing.T) {
	const ok, failed, unknown, not = tee.OK, tee.Failed, tee.Unknown, tee.NotApplicable
	huge := func(free uint64) func(*plan.Facts) {
		return func(f *plan.Facts) { f.HugePages = map[uint64]uint64{2 << 20: free} }
	}
	most := func(cpus int) func(*plan.Facts) { return func(f *plan.Facts) { f.Info.MaxCPUs["q35"] = cpus } }
	device := func(text string) string { return "[[device]]\n" + text + "\n" }
	object := func(kind, id string) string { return fmt.Sprintf("[[object]]\nqom-type = %q\nid = %q\n", kind, id) }
	argv := func(more ...string) func(*plan.Plan) { return func(p *plan.Plan) { p.Argv = append(p.Argv, more...) } }
	for _, c := range []struct {
		id   string
		c    checkCase
		want tee.Verdict
	}{
		{"machine-q35", checkCase{tech: "sev"}, ok},
		{"machine-q35", checkCase{tech: "tdx"}, ok}, // pc-q35-11.1
		{"machine-q35", checkCase{tech: "none", replace: [2]string{`"vm"`, "\"vm\"\nmachine = \"pc\""}}, not},
		{"no-variable-store", checkCase{tech: "none"}, not},
		{"kernel-measured", checkCase{tech: "sev"}, ok},
		{"kernel-measured", checkCase{tech: "sev-es"}, not},
		{"cpu-model-named", checkCase{tech: "sev", replace: [2]string{`"vm"`, "\"vm\"\ncpu = \"host\""}}, not},
		{"cpu-model-versioned", checkCase{tech: "sev-es", replace: [2]string{`cpu = "EPYC-Milan-v1"`, ""}}, not},
		{"cpu-model-versioned", checkCase{tech: "sev-es", replace: [2]string{"Milan-v1", "Milan-v1,+avx"}}, ok},
		{"private-memory-backend", checkCase{tech: "tdx", add: "[memory-backend]\ntype = 'memfd'\nshare = true\n"}, ok},
		{"private-memory-backend", checkCase{tech: "sev", add: "[memory-backend]\nshare = false\n"}, not},
		{"private-memory-twice", checkCase{tech: "tdx", add: "[memory-backend]\nprealloc = false\n"}, ok},

		{
			"virtio-dma",
			checkCase{tech: "sev", add: device("driver = 'virtio-rng-pci'\niommu_platform = true\n" +
				"disable-legacy = 'on'")},
			ok,
		},
		{"virtio-dma", checkCase{tech: "none", add: device("driver = 'virtio-rng-pci'\niommu_platform = false")}, not},
		{
			"extra-objects",
			checkCase{tech: "sev", add: object("rng-random", "x") + object("memory-backend-file", "y")},
			ok,
		},
		{"no-balloon", checkCase{tech: "none", add: device("driver = 'virtio-balloon-pci'")}, not},
		{"vfio-iommufd", checkCase{tech: "sev", add: device("driver = 'vfio-pci'\niommufd = 'x'")}, ok},
		{"vfio-iommufd", checkCase{tech: "sev"}, not},
		{"vfio-iommufd", checkCase{tech: "none", add: device("driver = 'vfio-pci'")}, not},
		{"option-roms", checkCase{tech: "sev", add: device("driver = 'e1000'\nromfile = ''")}, ok},
		{"option-roms", checkCase{tech: "sev", add: device("driver = 'e1000'\nromfile = 'x'")}, failed},
		{"option-roms", checkCase{tech: "sev", add: device("driver = 'virtio-rng-pci'")}, ok},

		{"cpu-model-known", checkCase{tech: "sev-es", replace: [2]string{"Milan-v1", "Milan-v1,+avx"}}, ok},
		{"cpu-model-known", checkCase{tech: "sev-es", host: func(f *plan.Facts) { f.Info.CPUs = nil }}, failed},
		{"cpu-model-known", checkCase{tech: "none"}, not},
		{
			"vcpu-limit",
			checkCase{tech: "none", replace: [2]string{`"vm"`, "\"vm\"\ncpus = 288"}, host: most(288)},
			ok,
		},
		{
			"vcpu-limit",
			checkCase{tech: "none", replace: [2]string{`"vm"`, "\"vm\"\ncpus = 289"}, host: most(288)},
			failed,
		},
		{"vcpu-limit", checkCase{tech: "none", host: func(f *plan.Facts) { f.Info.MaxCPUs = nil }}, not},
		{"free-slots", checkCase{tech: "sev", host: func(f *plan.Facts) { f.Host.Slots[0].InUse = 409 }}, ok},
		{"free-slots", checkCase{tech: "sev", host: func(f *plan.Facts) { f.Host.Slots[0].Total = -1 }}, unknown},
		{"free-slots", checkCase{tech: "sev", host: func(f *plan.Facts) { f.SlotDir = "/dev/null" }}, unknown},
		{"free-slots", checkCase{tech: "sev", host: func(f *plan.Facts) { f.Emulator = []string{} }}, not},
		{
			"free-slots",
			checkCase{tech: "sev", host: func(f *plan.Facts) {
				f.Emulator, f.Slots = []string{}, map[string]int{"sev": 0}
			}},
			failed,
		},
		{"free-slots", checkCase{tech: "none"}, not},
		{"memory-lock", checkCase{tech: "sev", host: func(f *plan.Facts) { f.MaxLock = 320 << 20 }}, ok},
		{"memory-lock", checkCase{tech: "sev", host: func(f *plan.Facts) { f.MaxLock = 320<<20 - 1 }}, failed},
		{"memory-lock", checkCase{tech: "sev-snp", host: func(f *plan.Facts) { f.MaxLock = 0 }}, not},
		{"memory-available", checkCase{tech: "sev", host: memory(320 << 20)}, ok},
		{"memory-available", checkCase{tech: "sev", host: memory(320<<20 - 1)}, failed},
		{"memory-available", checkCase{tech: "none", host: memory(512 << 20)}, ok},
		{"memory-available", checkCase{tech: "none", host: memory(512<<20 - 1)}, failed},
		{"memory-available", checkCase{tech: "sev-snp", host: memory(384 << 20)}, ok},
		{"memory-available", checkCase{tech: "sev-snp", host: memory(384<<20 - 1)}, failed},
		{"memory-available", checkCase{tech: "sev"}, not},
		{
			"hugepages-free",
			checkCase{tech: "none", add: "[memory-backend]\nhugepages = '2MiB'\n", host: huge(256)},
			ok,
		},
		{
			"hugepages-free",
			checkCase{tech: "none", add: "[memory-backend]\nhugepages = '2MiB'\n", host: huge(255)},
			failed,
		},
		{"hugepages-free", checkCase{tech: "none", add: "[memory-backend]\nhugepages = '2MiB'\n"}, not},
		{
			"hugepages-free",
			checkCase{tech: "none", host: func(f *plan.Facts) { f.HugePages = map[uint64]uint64{} }},
			not,
		},
		{
			"technology-usable",
			checkCase{tech: "sev", host: func(f *plan.Facts) { f.Host.Technologies[0].Usable = host.Unknown }},
			unknown,
		},
		{"technology-usable", checkCase{tech: "none"}, not},
		{"qemu-object", checkCase{tech: "none", host: func(f *plan.Facts) { f.Info = nil }}, not},

		{"owner-command", checkCase{tech: "sev", add: "[latch]\nowner = ['true']\n"}, ok},
		{"owner-command", checkCase{tech: "sev", add: "[latch]\nowner = ['no-such-program']\n"}, failed},
		{"owner-command", checkCase{tech: "sev", add: "[latch]\nowner = ['./k']\n"}, failed}, // cannot be executed
		{"owner-command", checkCase{tech: "sev"}, not},
		{"firmware-stateless", checkCase{tech: "sev", argv: [2]string{"q35,", "q35,pflash1=vars,"}}, failed},
		{"firmware-knows", checkCase{tech: "sev", files: map[string]string{"fw": "-"}}, unknown},
		{"firmware-knows", checkCase{tech: "sev", files: map[string]string{"fw": "no table"}}, ok}, // SEV needs none
		{"kernel-hashes-area", checkCase{tech: "sev", files: map[string]string{"fw": "-"}}, unknown},
		{"kernel-hashes-area", checkCase{tech: "sev-es", files: map[string]string{"fw": "no table"}}, not},
		{"igvm-alone", checkCase{tech: "sev-snp", plan: func(p *plan.Plan) { igvmAlone(p, "") }}, ok},
		{"igvm-alone", checkCase{tech: "sev-snp", plan: func(p *plan.Plan) { igvmAlone(p, ",pflash0=x") }}, failed},
		{"igvm-alone", checkCase{tech: "sev-snp"}, not},
		{"irqchip", checkCase{tech: "tdx", argv: [2]string{"smm=off", "smm=off,kernel-irqchip=split"}}, ok},
		{"irqchip", checkCase{tech: "tdx", argv: [2]string{"smm=off", "smm=off,kernel_irqchip=on"}}, failed},
		{"irqchip", checkCase{tech: "sev-es", plan: argvReplaced("-accel", "kvm,kernel-irqchip=split")}, failed},
		{"irqchip", checkCase{tech: "sev", argv: [2]string{"q35,", "q35,kernel-irqchip=split,"}}, not},
		{"smm-off", checkCase{tech: "sev", argv: [2]string{"q35,", "q35,smm=on,"}}, not},
		{
			"private-memory",
			checkCase{tech: "tdx", argv: [2]string{"memory-backend-memfd", "memory-backend-ram"}},
			failed,
		},
		{
			"private-memory",
			checkCase{tech: "tdx", argv: [2]string{"memory-backend=ram", "memory-backend=other"}},
			failed,
		},
		{"private-memory", checkCase{tech: "sev"}, not},
		{"machine-defaults", checkCase{tech: "sev", argv: [2]string{"vmport=off", "vmport=auto"}}, failed},
		{"machine-defaults", checkCase{tech: "sev", argv: [2]string{"dump-guest-core=off", "x=y"}}, failed},
		{"paused-start", checkCase{tech: "sev", plan: argv("-incoming", "defer")}, failed},
		{"paused-start", checkCase{tech: "sev", plan: argv("-loadvm", "x")}, failed},
		{"fixed-size", checkCase{tech: "sev", plan: argvReplaced("-m", "64,maxmem=128")}, failed},
		{"fixed-size", checkCase{tech: "sev", plan: argvReplaced("-smp", "")}, failed},
		{"fixed-size", checkCase{tech: "sev", plan: argvReplaced("-m", "")}, failed},
		{"one-monitor", checkCase{tech: "none", plan: argv("-mon", "x")}, failed},
		{"one-monitor", checkCase{tech: "none", plan: argv("-qmp", "stdio")}, failed},
		{"one-monitor", checkCase{tech: "none", plan: argv("-gdb", "tcp::1234")}, failed},
		{"one-monitor", checkCase{tech: "none", plan: argv("-serial", "mon:stdio")}, failed},
		{"one-monitor", checkCase{tech: "none"}, ok},
		{"disks-private", checkCase{tech: "sev", add: "[[disk]]\nimage = 'k'\n"}, ok},
		{"disks-private", checkCase{tech: "sev", add: "[[disk]]\nimage = 'missing'\n"}, ok}, // another check's matter
		{
			"disks-private",
			checkCase{tech: "none", add: "[[disk]]\nimage = 'disk'\n", files: map[string]string{"disk": "x"}},
			not,
		},
	} {
		results, refused := c.c.look(t)
		i := slices.IndexFunc(results, func(r check.Result) bool { return r.ID == c.id })
		if i < 0 || refused {
			t.Errorf("%s of %+v: refused early: %t: %+v", c.id, c.c, refused, results)
		} else if r := results[i]; r.Verdict != c.want {
			t.Errorf("%s of %+v: %s (%s), want %s", c.id, c.c, r.Verdict, r.Detail, c.want)
		}
	}
}

// argvReplaced gives an option another value.
func argvReplaced(option, value string) func(*plan.Plan) {
	return func(p *plan.Plan) { p.Argv[slices.Index(p.Argv, option)+1] = value }
}

// igvmAlone makes a plan's firmware an IGVM file, with more properties of the machine.
func igvmAlone(p *plan.Plan, more string) {
	for _, option := range []string{"-bios", "-kernel"} {
		i := slices.Index(p.Argv, option)
		p.Argv = slices.Delete(p.Argv, i, i+2)
	}
	p.Argv[slices.Index(p.Argv, "-machine")+1] += ",igvm-cfg=igvm0" + more
}

// TestObjectProperties: no property that is not known, and none that shows a secret.
func TestObjectProperties(t *testing.T) {
	for text, want := range map[string]string{
		`qom-type = "secret"` + "\n" + `data = "hunter2"`:              "command line",
		`qom-type = "secret"` + "\n" + `file = "/run/key"`:             "",
		`qom-type = "secret"` + "\n" + `fiel = "/run/key"`:             `did you mean "file"?`,
		`qom-type = "tls-creds-psk"` + "\n" + `password = "x"`:         `unknown property "password"`,
		`qom-type = "iothread"` + "\n" + `poll-max-ns = 1`:             "",
		`qom-type = "rng-random"` + "\n" + `filename = "/dev/urandom"`: "",
	} {
		g, err := guestOf("[[object]]\nid = \"x\"\n" + text + "\n")
		if err != nil {
			t.Fatal(err)
		}
		err = check.SpecError(g, check.Spec(g))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
}

// TestObjectsThatAreRefused: kinds that could open a way past the latch, and the ids of
// vmlatch's own.
func TestObjectsThatAreRefused(t *testing.T) {
	for object, want := range map[[2]string]bool{
		{"rng-random", "x"}: true, {"iothread", "x"}: true, {"iommufd", "x"}: true, {"tls-creds-x509", "x"}: true,
		{"secret", "x"}: true, {"can-bus", "x"}: true, {"throttle-group", "x"}: true, {"authz-list", "x"}: true,
		{"cryptodev-backend-builtin", "x"}: true, {"thread-context", "x"}: true, {"memory-backend-memfd", "x"}: true,
		{"memory-backend-epc", "x"}: false, {"iothreads", "x"}: false, {"a-rng-random", "x"}: false,
		{"qtest", "x"}: false, {"sev-guest", "x"}: false, {"igvm-cfg", "x"}: false, {"monitor-hmp", "x"}: false,
		{"secret_keyring", "x"}: false, {"iothread", plan.ObjectID}: false,
		{"memory-backend-ram", plan.MemoryID}: false,
	} {
		g, err := guestOf(fmt.Sprintf("[[object]]\nqom-type = %q\nid = %q\n", object[0], object[1]))
		if err != nil {
			t.Fatal(err)
		}
		if err := check.SpecError(g, check.Spec(g)); (err == nil) != want {
			t.Errorf("%s with id %s: %v, want it allowed: %t", object[0], object[1], err, want)
		}
	}
}

// TestNameOfAnEndedVM is free.
func TestNameOfAnEndedVM(t *testing.T) {
	for name, c := range map[string]struct {
		change func(p *plan.Plan)
		want   tee.Verdict
	}{
		"never used": {func(*plan.Plan) {}, tee.OK},
		"running": {func(p *plan.Plan) {
			if _, err := p.Dirs.Create(t.Context(), p.Name); err != nil {
				t.Error(err)
			}
		}, tee.Failed},
		"a launch that was given up": {func(p *plan.Plan) {
			d, err := p.Dirs.Create(t.Context(), p.Name)
			if err != nil {
				t.Error(err)
				return
			}
			d.Close()
		}, tee.OK},
		"a file in its place": {func(p *plan.Plan) {
			file := filepath.Join(p.Dirs.Run, p.Name)
			if err := errors.Join(os.MkdirAll(p.Dirs.Run, 0o700), os.WriteFile(file, nil, 0o600)); err != nil {
				t.Error(err)
			}
		}, tee.OK},
	} {
		results, _ := checkCase{tech: "none", plan: c.change}.look(t)
		i := slices.IndexFunc(results, func(r check.Result) bool { return r.ID == check.NameFree })
		if got := results[i]; got.Verdict != c.want {
			t.Errorf("%s: %s (%s), want %s", name, got.Verdict, got.Detail, c.want)
		}
	}
}

// memory is a host that has so much left, in bytes.
func memory(left uint64) func(*plan.Facts) {
	return func(f *plan.Facts) { f.Host.MemFree = left }
}
