package host

import (
	"encoding/binary"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// put writes a file of a record.
func put(t *testing.T, r Root, name, content string) {
	t.Helper()
	if err := r.write(name, []byte(content)); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, r Root, name string) {
	t.Helper()
	if err := os.RemoveAll(r.path(name)); err != nil {
		t.Fatal(err)
	}
}

// TestWhyNot: what is missing is named, in the order in which a host's owner would
// mend it.
func TestWhyNot(t *testing.T) {
	for _, c := range []struct {
		host, technology string
		change           func(Root)
		want             Answer
		why              string
	}{
		{"milan-snp-on", SNP, func(Root) {}, Yes, ""},
		{"milan-snp-on", SEVES, func(Root) {}, Yes, "does not count as secure"},
		{"milan-snp-off", SEVES, func(Root) {}, Yes, ""},
		{"milan-snp-on", SNP, func(r Root) { remove(t, r, "dev/sev") }, No, "/dev/sev"},
		{"milan-snp-on", SNP, func(r Root) { remove(t, r, "dev/kvm") }, No, "/dev/kvm"},
		{"milan-snp-on", SNP, func(r Root) { remove(t, r, "sys/module/kvm_amd") }, No, "kvm_amd is not loaded"},
		{
			"milan-snp-on", SNP, func(r Root) { put(t, r, "sys/module/kvm_amd/parameters/sev_snp", "N") }, No,
			"runs without SEV-SNP",
		},
		{
			"milan-snp-on", SNP, func(r Root) { remove(t, r, "sys/module/kvm_amd/parameters/sev_snp") }, No,
			"does not know SEV-SNP",
		},
		{
			"milan-snp-on", SNP, func(r Root) { put(t, r, "sys/module/kvm_amd/parameters/sev_snp", "?") }, Unknown,
			"cannot be read",
		},
		{
			"milan-snp-off", SEVES, func(r Root) {
				put(t, r, "sys/module/kvm_amd/parameters/sev_es", "N")
				put(t, r, "recorded/cpu.json", `{"vendor":"AuthenticAMD","sev":true,"sev-es":true,"max-guests":509,"min-sev-asid":1}`)
			}, No, "no address-space ID is set aside",
		},
		{"naples", SEVES, func(Root) {}, No, "EAX[3]"},
		{"milan-snp-on", TDX, func(Root) {}, No, "needs a processor by Intel"},
		{"tdx", TDX, func(Root) {}, Yes, ""},
		{"tdx", SEV, func(Root) {}, No, "needs a processor by AMD"},
		{"tdx", TDX, func(r Root) { remove(t, r, "dev/kvm") }, No, "/dev/kvm"},
		{"tdx", TDX, func(r Root) { remove(t, r, "sys/module/kvm_intel") }, No, "kvm_intel is not loaded"},
		{"tdx", TDX, func(r Root) { remove(t, r, "sys/module/kvm_intel/parameters/tdx") }, No, "does not know TDX"},
		{"tdx", TDX, func(r Root) { put(t, r, "sys/module/kvm_intel/parameters/tdx", "N") }, No, "runs without TDX"},
		{"tdx", TDX, func(r Root) { put(t, r, "sys/module/kvm_intel/parameters/tdx", "?") }, Unknown, "cannot be read"},
		{"tdx", MKTME, func(Root) {}, No, "no keys of type mktme"},
		{"no-tee", "nonsense", func(Root) {}, No, "not known"},
	} {
		r := recordOf(t, c.host)
		c.change(r)
		rep, err := Detect(r)
		if err != nil {
			t.Fatal(err)
		}
		got := rep.Technology(c.technology)
		if got.Name != c.technology || got.Usable != c.want ||
			!strings.Contains(got.Why, c.why) || c.why == "" && got.Why != "" {
			t.Errorf("%s on %s: %+v, want %s because %q", c.technology, c.host, got, c.want, c.why)
		}
	}
}

// TestModuleThatDidNotStart: KVM clears its parameter then, and only the log tells
// that the module is there.
func TestModuleThatDidNotStart(t *testing.T) {
	r := recordOf(t, "tdx")
	put(t, r, "sys/module/kvm_intel/parameters/tdx", "N")
	for log, want := range map[string]Answer{"virt/tdx: module initialized\n": Yes, "\n": Unknown} {
		put(t, r, "recorded/dmesg.txt", log)
		rep, err := Detect(r)
		if err != nil || rep.TDX == nil || rep.TDX.Initialized != want {
			t.Errorf("log %q: %+v, %v, want %s", log, rep.TDX, err, want)
		}
	}
}

func TestIOMMU(t *testing.T) {
	for what, c := range map[string]struct {
		cmdline, group string
		want           Answer
	}{
		"unknown":          {"quiet", "", Unknown},
		"by option":        {"quiet iommu=pt", "DMA-FQ", Yes},
		"by its long form": {"iommu.passthrough=1", "", Yes},
		"by group":         {"quiet", "identity", Yes},
		"translated":       {"quiet iommu.passthrough=0", "DMA-FQ", No},
	} {
		r := recordOf(t, "no-tee")
		put(t, r, "proc/cmdline", c.cmdline)
		remove(t, r, "sys/kernel/iommu_groups")
		if c.group != "" {
			put(t, r, "sys/kernel/iommu_groups/0/type", c.group)
		}
		rep, err := Detect(r)
		if err != nil || rep.IOMMU.Passthrough != c.want {
			t.Errorf("%s: %+v, %v, want %s", what, rep.IOMMU, err, c.want)
		}
	}
}

func TestKernelAtLeast(t *testing.T) {
	for release, want := range map[string]bool{
		"6.11.0-rc1": true,
		"6.11":       true,
		"6.12.3":     true,
		"7.0.1":      true,
		"6.10.99":    false,
		"5.19.0":     false,
		"":           false,
		"six.11":     false,
	} {
		if got := (&Report{Kernel: release}).KernelAtLeast(6, 11); got != want {
			t.Errorf("%q: %t, want %t", release, got, want)
		}
	}
}

func TestFreeHugePages(t *testing.T) {
	r := Root(t.TempDir())
	if got := r.FreeHugePages(); got != nil {
		t.Errorf("none: %v, want nil", got)
	}
	put(t, r, "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "7\n")
	put(t, r, "sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages", "x\n")
	put(t, r, "sys/kernel/mm/hugepages/other/free_hugepages", "9\n")
	want := map[uint64]uint64{2 << 20: 7, 1 << 30: 0}
	if diff := cmp.Diff(want, r.FreeHugePages()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestNodes: huge pages are counted on the nodes that are asked for.
func TestNodes(t *testing.T) {
	r := Root(t.TempDir())
	if got := r.FreeHugePagesOn([]int{0}); got != nil || r.Nodes() != "" {
		t.Errorf("none: %v, %q", got, r.Nodes())
	}
	put(t, r, "sys/devices/system/node/has_memory", "0-2\n")
	for node, free := range map[string]string{"node0": "7\n", "node1": "3\n", "node2": "100\n"} {
		put(t, r, "sys/devices/system/node/"+node+"/hugepages/hugepages-2048kB/free_hugepages", free)
	}
	want := map[uint64]uint64{2 << 20: 10}
	if diff := cmp.Diff(want, r.FreeHugePagesOn([]int{0, 1})); diff != "" || r.Nodes() != "0-2" {
		t.Errorf("of %s (-want +got):\n%s", r.Nodes(), diff)
	}
}

func TestMemAvailable(t *testing.T) {
	for text, want := range map[string]uint64{
		"MemTotal: 9 kB\nMemAvailable:   1024 kB\n": 1 << 20,
		"MemAvailable: 1024 MB\n":                   0,
		"MemAvailable: x kB":                        0,
		"":                                          0,
	} {
		if got := memAvailable(text); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}

// TestPools: a report has no pool of another name, and the operator may limit each.
func TestPools(t *testing.T) {
	names := map[string]bool{}
	for _, name := range Pools() {
		names[name] = true
	}
	for _, host := range []string{"genoa-hiding", "milan-snp-on", "tdx"} {
		rep, err := Detect(recordOf(t, host))
		if err != nil {
			t.Fatal(err)
		}
		if len(rep.Slots) == 0 {
			t.Errorf("%s has no pool", host)
		}
		for _, p := range rep.Slots {
			if !names[p.Name] {
				t.Errorf("%s: pool %s, want one of %v", host, p.Name, Pools())
			}
			for _, technology := range p.Technologies {
				if got, ok := rep.PoolOf(technology); !ok || got.Name != p.Name {
					t.Errorf("%s: the pool of %s is %+v, want %s", host, technology, got, p.Name)
				}
			}
		}
		if p, ok := rep.PoolOf("nonsense"); ok {
			t.Errorf("%s: the pool of nonsense is %+v", host, p)
		}
	}
}

// TestInUse: a count anew is the report's, on every recorded host; where there is no
// host to look at, nothing is known.
func TestInUse(t *testing.T) {
	for _, host := range []string{
		"naples", "milan-snp-off", "milan-snp-on", "genoa-hiding", "tdx", "container",
		"no-tee",
	} {
		r := recordOf(t, host)
		rep, err := Detect(r)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range rep.Slots {
			if got := r.InUse(p.Name); got != p.InUse {
				t.Errorf("%s: %d of %s, want %d", host, got, p.Name, p.InUse)
			}
		}
	}
	if got := Root(t.TempDir()).InUse("sev"); got != -1 {
		t.Errorf("no host: %d, want -1", got)
	}
	r := recordOf(t, "milan-snp-on")
	put(t, r, "sys/fs/cgroup/misc.current", "sev 7\nmktme 9\nsev-snp 9\n")
	for pool, want := range map[string]int{"sev": 7, "sev-es": -1, "sev-snp": -1, "mktme": -1, "tdx": -1, "": -1} {
		if got := r.InUse(pool); got != want {
			t.Errorf("%d of %s, want %d", got, pool, want)
		}
	}
}

// TestMSR reads a register as the kernel's device shows it, and as a record has it.
func TestMSR(t *testing.T) {
	r := recordOf(t, "milan-snp-on")
	put(t, r, "recorded/msr.json", `{"0x10": "0x1234", "0x20": "many"}`)
	if v, err := r.msr(0x10); v != 0x1234 || err != nil {
		t.Errorf("recorded: %#x, %v, want 0x1234", v, err)
	}
	for _, n := range []uint32{0x20, 0x30} {
		if v, err := r.msr(n); err == nil {
			t.Errorf("%#x: %#x, want an error", n, v)
		}
	}
	remove(t, r, "recorded/msr.json")
	if _, err := r.msr(0x10); err == nil {
		t.Error("no record: no error")
	}
	b := make([]byte, 0x20)
	binary.LittleEndian.PutUint64(b[0x10:], 0x5678)
	put(t, r, "dev/cpu/0/msr", string(b))
	if v, err := readMSR(r.path("dev/cpu/0/msr"), 0x10); v != 0x5678 || err != nil {
		t.Errorf("device: %#x, %v, want 0x5678", v, err)
	}
	if _, err := readMSR(r.path("dev/cpu/0/msr"), 0x1000); err == nil || !strings.Contains(err.Error(), "MSR 0x1000") {
		t.Errorf("behind its end: %v, want an error about MSR 0x1000", err)
	}
	if _, err := readMSR(r.path("dev/cpu/1/msr"), 0x10); err == nil {
		t.Error("no device: no error")
	}
}

// TestThisHost: whatever this machine is, KVM is usable or there is a reason.
func TestThisHost(t *testing.T) {
	if ok, why := KVM(); ok != (why == "") {
		t.Errorf("usable %t because %q", ok, why)
	}
	if _, err := DetectWithoutLog("/"); err != nil {
		t.Error(err)
	}
}

// TestReadIsBounded: no file of a host is waited for or read without an end.
func TestReadIsBounded(t *testing.T) {
	r := Root(t.TempDir())
	put(t, r, "large", strings.Repeat("x", maxRead+1))
	for name, want := range map[string]string{
		"large": "too large", ".": "not a regular file",
		"missing": "no such file",
	} {
		if b, err := r.read(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %d bytes, %v, want %q", name, len(b), err, want)
		}
	}
	put(t, r, "small", " a b \n")
	if got := r.word("small"); got != "a b" {
		t.Errorf("word %q, want %q", got, "a b")
	}
	for _, name := range []string{".", "missing"} {
		if got := r.word(name); got != "" {
			t.Errorf("word of %s: %q, want none", name, got)
		}
	}
}

// TestRecordKeepsNoSecrets: of a command line and of a log only what a report reads.
func TestRecordKeepsNoSecrets(t *testing.T) {
	from := recordOf(t, "milan-snp-on")
	put(t, from, "proc/cmdline", "root=/dev/sda password=hunter2 iommu=pt kvm_amd.sev=1 quiet\n")
	put(t, from, "recorded/dmesg.txt", "SEV API:1.55 build:21\nsecret of another driver\n")
	dir := t.TempDir() + "/record"
	if err := from.Record(dir); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"proc/cmdline":       "iommu=pt kvm_amd.sev=1\n",
		"recorded/dmesg.txt": "SEV API:1.55 build:21\n",
	} {
		if b, err := os.ReadFile(dir + "/" + name); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v, want %q", name, b, err, want)
		}
	}
	want, err1 := Detect(from)
	got, err2 := Detect(Root(dir))
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("a record of a record (-want +got):\n%s", diff)
	}
	if err := Root(t.TempDir()).Record(t.TempDir() + "/none"); err == nil {
		t.Error("a host without a processor was recorded")
	}
}
