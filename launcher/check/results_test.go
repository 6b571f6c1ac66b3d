package check_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmlatch/vmlatch/launcher/check"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// result is a check's, of a severity and a stage.
func result(id string, severity tee.Severity, stage tee.Stage, verdict tee.Verdict) check.Result {
	c := tee.Check{ID: id, Severity: severity, Stage: stage, Cause: "cause of " + id, Fix: "fix of " + id}
	return check.Result{Check: c, Verdict: verdict}
}

func TestWhatAResultMeans(t *testing.T) {
	for _, severity := range []tee.Severity{tee.Refuse, tee.Warn, tee.Default} {
		for _, verdict := range []tee.Verdict{tee.OK, tee.Failed, tee.Unknown, tee.NotApplicable} {
			r := result("x", severity, tee.SpecStage, verdict)
			warns := verdict == tee.Failed && severity == tee.Warn
			refuses := verdict == tee.Failed && severity != tee.Warn
			if r.Refuses() != refuses || r.Warns() != warns {
				t.Errorf("%s of %s: refuses %t, warns %t, want %t and %t", verdict, severity, r.Refuses(),
					r.Warns(), refuses, warns)
			}
		}
	}
	for _, c := range []struct {
		stage          tee.Stage
		ofSpec, ofHost bool
		want           bool
	}{
		{tee.SpecStage, false, false, false},
		{tee.HostStage, false, false, true},
		{tee.HostStage, true, false, false},
		{tee.PlanStage, false, false, false},
		{tee.PlanStage, false, true, true},
	} {
		r := check.Result{Check: tee.Check{Stage: c.stage, OfSpec: c.ofSpec, OfHost: c.ofHost}}
		if got := r.IsHost(); got != c.want {
			t.Errorf("%+v is about the host: %t, want %t", c, got, c.want)
		}
	}
}

// TestErrorOfResults: one error for all that refuse, of the kind that they have in
// common.
func TestErrorOfResults(t *testing.T) {
	spec := result("s", tee.Refuse, tee.SpecStage, tee.Failed)
	ofHost := result("h", tee.Default, tee.HostStage, tee.Failed)
	other := result("i", tee.Refuse, tee.HostStage, tee.Failed)
	other.Detail = "5 of 7"
	name := result(check.NameFree, tee.Refuse, tee.PlanStage, tee.Failed)
	fine := []check.Result{
		result("a", tee.Refuse, tee.SpecStage, tee.OK), result("b", tee.Warn, tee.SpecStage, tee.Failed),
		result("c", tee.Refuse, tee.HostStage, tee.Unknown), result("d", tee.Refuse, tee.PlanStage, tee.NotApplicable),
	}
	const all = "\n\"vmlatch check FILE\" shows all checks"
	for title, c := range map[string]struct {
		results []check.Result
		want    *fault.Error
		text    string
	}{
		"none":         {nil, nil, ""},
		"none refuses": {fine, nil, ""},
		"the spec": {
			[]check.Result{spec},
			&fault.Error{Kind: fault.Spec, Check: "s", Fix: "s: fix of s" + all},
			"check s: cause of s",
		},
		"the host": {
			[]check.Result{other},
			&fault.Error{Kind: fault.Host, Check: "i", Fix: "i: fix of i" + all},
			"check i: cause of i (5 of 7)",
		},
		"several": {
			[]check.Result{ofHost, other},
			&fault.Error{Kind: fault.Host, Check: "h", Fix: "h: fix of h\ni: fix of i" + all},
			"check h: cause of h; 1 more",
		},
		"both": {
			[]check.Result{ofHost, spec, other},
			&fault.Error{Kind: fault.Spec, Check: "h", Fix: "h: fix of h\ns: fix of s\ni: fix of i" + all},
			"check h: cause of h; 2 more",
		},
		"the name": {
			[]check.Result{name},
			&fault.Error{Kind: fault.NameTaken, Check: "name-free", Fix: "name-free: fix of name-free" + all},
			"check name-free: cause of name-free",
		},
		"name and host": {
			[]check.Result{name, ofHost},
			&fault.Error{Kind: fault.Spec, Check: "name-free", Fix: "name-free: fix of name-free\nh: fix of h" + all},
			"check name-free: cause of name-free; 1 more",
		},
	} {
		err := check.Error("vm.toml", slices.Concat(fine, c.results))
		if c.want == nil {
			if err != nil {
				t.Errorf("%s: %v, want no error", title, err)
			}
			continue
		}
		got := fault.As(err)
		if got == nil {
			t.Errorf("%s: %v, want an error of the launcher", title, err)
			continue
		}
		if want := "vm.toml: " + c.text; got.Kind != fault.Host && err.Error() != want ||
			!strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %q, want %q", title, err, want)
		}
		if got.Kind != c.want.Kind || got.Check != c.want.Check || got.Fix != c.want.Fix || got.File != "vm.toml" {
			t.Errorf("%s: %+v, want %+v", title, got, c.want)
		}
	}
}

// TestErrorOfASpec: of the first check that refuses, at the place of its key.
func TestErrorOfASpec(t *testing.T) {
	g, err := guestOf("machine = 'pc'\n" + testhost.Specs()["sev"])
	if err != nil {
		t.Fatal(err)
	}
	refusing := func(detail string) []check.Result {
		a, b := result("a", tee.Warn, tee.SpecStage, tee.Failed), result("b", tee.Refuse, tee.SpecStage, tee.Failed)
		b.Key, b.Detail = "machine", detail
		return []check.Result{a, b, result("c", tee.Refuse, tee.SpecStage, tee.Failed)}
	}
	for detail, want := range map[string]string{
		"": "vm.toml:1:1: machine: cause of b", "pc": "vm.toml:1:1: machine: pc: cause of b",
		"pc does not do": "vm.toml:1:1: machine: pc does not do",
	} {
		err := check.SpecError(g, refusing(detail))
		if e := fault.As(err); e == nil || err.Error() != want || e.Check != "b" || e.Fix != "fix of b" ||
			e.Kind != fault.Spec {
			t.Errorf("detail %q: %#v, want %q of check b with its fix", detail, e, want)
		}
	}
	if err := check.SpecError(g, refusing("")[:1]); err != nil {
		t.Errorf("a warning: %v, want no error", err)
	}
	if err := check.SpecError(g, check.Spec(g)); err == nil || !strings.Contains(err.Error(), `machine: "pc": `) {
		t.Errorf("a machine of type pc: %v, want it refused", err)
	}
}

func guestOf(text string) (*tee.Guest, error) {
	s, err := tee.Parse([]byte(text), "vm.toml", "/specs")
	if err != nil {
		return nil, err
	}
	return s.For(s.Asked()[0])
}

// TestResultOfAnError: an error that comes before there is a plan is shown as a check.
func TestResultOfAnError(t *testing.T) {
	cause := errors.New("it is so")
	known := check.Table()[0]
	for name, c := range map[string]struct {
		err       error
		id, fix   string
		detail    string
		stage     tee.Stage
		not, fits bool
	}{
		"no error":        {err: nil, not: true},
		"of another type": {err: fs.ErrNotExist, not: true},
		"of another kind": {err: &fault.Error{Kind: fault.Failure, Err: cause}, not: true},
		"a name":          {err: &fault.Error{Kind: fault.NameTaken, Err: cause}, not: true},
		"a spec's": {
			err: fmt.Errorf("x: %w", &fault.Error{Kind: fault.Spec, File: "f", Key: "k", Err: cause}),
			id:  "spec", fix: `"vmlatch help spec"`, detail: "f: k: it is so",
		},
		"a host's": {
			err: &fault.Error{Kind: fault.Host, File: "f", Op: "fly", Err: cause},
			id:  "host", fix: `"vmlatch host"`, detail: "it is so", stage: tee.HostStage,
		},
		"a spec's, with a fix": {
			err: &fault.Error{Kind: fault.Spec, Err: cause, Fix: "do so"}, id: "spec", fix: "do so", detail: "it is so",
		},
		"a check's": {
			err: &fault.Error{Kind: fault.Spec, Err: cause, Check: known.ID},
			id:  known.ID, fix: known.Fix, detail: "it is so",
		},
		"a check's, with a fix": {
			err: &fault.Error{Kind: fault.Host, Err: cause, Check: "qemu-object", Fix: "do so"},
			id:  "qemu-object", fix: "do so", detail: "it is so", stage: tee.HostStage,
		},
		"a file's": {
			err: &fault.Error{Kind: fault.Spec, Err: cause, Check: check.FilesReadable, Fix: "another fix"},
			id:  check.FilesReadable, fix: fault.FixPaths, detail: "it is so", stage: tee.PlanStage,
		},
		"a choice's": {
			err: &fault.Error{Kind: fault.Host, Err: cause, Check: check.Technology},
			id:  check.Technology, fix: "the reasons say what each lacks", detail: "it is so", stage: tee.HostStage,
		},
		"of an unknown check": {
			err: &fault.Error{Kind: fault.Spec, Err: cause, Check: "unheard-of"},
			id:  "spec", fix: "help spec", detail: "it is so",
		},
	} {
		r, ok := check.Of(c.err)
		if ok == c.not {
			t.Errorf("%s: is a result: %t, want %t", name, ok, !c.not)
			continue
		}
		if c.not {
			if r.ID != "" {
				t.Errorf("%s: %+v, want none", name, r)
			}
			continue
		}
		if r.ID != c.id || !strings.Contains(r.Fix, c.fix) || r.Detail != c.detail || r.Stage != c.stage ||
			!r.Refuses() {
			t.Errorf("%s: %+v, want a refusal by %s of stage %d with %q and fix %q", name, r, c.id, c.stage,
				c.detail, c.fix)
		}
		if r.Cause == "" || r.Source == "" {
			t.Errorf("%s: cause %q, source %q, want both", name, r.Cause, r.Source)
		}
	}
}

func TestOnlyAndExcept(t *testing.T) {
	a, b := result("a", tee.Refuse, tee.SpecStage, tee.Failed), result("b", tee.Refuse, tee.SpecStage, tee.Failed)
	warning := result("w", tee.Warn, tee.SpecStage, tee.Failed)
	for _, c := range []struct {
		results []check.Result
		want    bool
	}{
		{nil, false},
		{[]check.Result{a}, true},
		{[]check.Result{b}, false},
		{[]check.Result{a, b}, false},
		{[]check.Result{warning, a}, true},
		{[]check.Result{warning}, false},
	} {
		if got := check.Only(c.results, "a"); got != c.want {
			t.Errorf("a alone refuses of %v: %t, want %t", failedIDs(c.results), got, c.want)
		}
	}
	list := []check.Result{a, b, warning}
	for want, ids := range map[string][]string{"a b w": nil, "b": {"a", "w"}, "b w": {"a", "x"}, "": {"w", "b", "a"}} {
		if got := strings.Join(failedIDs(check.Except(list, ids...)), " "); got != want {
			t.Errorf("without %q: %q, want %q", ids, got, want)
		}
	}
	if got := failedIDs(list); !slices.Equal(got, []string{"a", "b", "w"}) {
		t.Errorf("the list became %q, want it unchanged", got)
	}
}

// TestStages: each stage makes its checks and those before it.
func TestStages(t *testing.T) {
	g, err := guestOf(testhost.Specs()["tdx"])
	if err != nil {
		t.Fatal(err)
	}
	count := func(last tee.Stage) (ids []string) {
		for _, c := range check.Table() {
			if c.Stage <= last {
				ids = append(ids, c.ID)
			}
		}
		return ids
	}
	ids := func(results []check.Result) (ids []string) {
		for _, r := range results {
			ids = append(ids, r.ID)
		}
		return ids
	}
	if diff := cmp.Diff(count(tee.SpecStage), ids(check.Spec(g))); diff != "" {
		t.Errorf("of the spec (-want +got):\n%s", diff)
	}
	facts := testhost.Facts()
	if diff := cmp.Diff(count(tee.HostStage), ids(check.Host(g, facts))); diff != "" {
		t.Errorf("of the host (-want +got):\n%s", diff)
	}
	results, _ := checkCase{tech: "tdx"}.look(t)
	if diff := cmp.Diff(count(tee.PlanStage), ids(results)); diff != "" {
		t.Errorf("of the plan (-want +got):\n%s", diff)
	}
}

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
		{"memory-available", checkCase{tech: "sev", host: func(f *plan.Facts) { f.Host.MemFree = 64 << 20 }}, ok},
		{"memory-available", checkCase{tech: "sev", host: func(f *plan.Facts) { f.Host.MemFree = 64<<20 - 1 }}, failed},
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
			if _, err := p.Dirs.Create(p.Name); err != nil {
				t.Error(err)
			}
		}, tee.Failed},
		"a launch that was given up": {func(p *plan.Plan) {
			d, err := p.Dirs.Create(p.Name)
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
