package launcher

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/slot"
	"github.com/vmlatch/vmlatch/launcher/spec"
)

// TestAllowLock: a limit that can be raised is, one that cannot is told with its
// numbers. The limit is this process's, so it is put back.
func TestAllowLock(t *testing.T) {
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &was); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &was) })
	low := unix.Rlimit{Cur: 64 << 10, Max: was.Max}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &low); err != nil {
		t.Skip(err)
	}
	if err := allowLock(32 << 10); err != nil {
		t.Error(err)
	}
	need := plan.LockedMemory(64 << 20)
	err := allowLock(need)
	var lacking *fault.Error
	var now unix.Rlimit
	if e := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &now); e != nil {
		t.Fatal(e)
	}
	switch {
	case err == nil && now.Cur < uint64(need):
		t.Errorf("the limit is %d, QEMU needs %d", now.Cur, need)
	case err == nil:
	case !errors.As(err, &lacking) || !errors.Is(err, fault.ErrHost) || lacking.Fix == "":
		t.Errorf("error %#v, want one about the host, with a fix", err)
	case !strings.Contains(err.Error(), "RLIMIT_MEMLOCK"):
		t.Errorf("error %v, want one that names RLIMIT_MEMLOCK", err)
	}
}

// TestSlotUses: the larger of leases and the kernel's count is what is used.
func TestSlotUses(t *testing.T) {
	f := testhost.Facts(func(f *plan.Facts) { f.SlotDir = t.TempDir(); f.Slots = map[string]int{"sev": 3} })
	pool := slot.Pool{Dir: f.SlotDir, Name: "sev", Size: 3, InUse: -1}
	a, err1 := pool.Take()
	b, err2 := pool.Take()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	defer a.File().Close()
	defer b.File().Close()
	f.Host.Slots = append(f.Host.Slots, host.Pool{Name: "tdx", Technologies: []string{"tdx"}, Total: -1, InUse: 4})
	uses, err := SlotUses(f)
	if err != nil || len(uses) != 4 {
		t.Fatalf("%+v, %v", uses, err)
	}
	for i, want := range []SlotUse{
		{Limit: 3, Leased: 2, Used: 2, Free: 1},
		{Limit: 99, Leased: 0, Used: 0, Free: -1},
		{Limit: -1, Leased: 0, Used: 4, Free: -1},
		{Limit: 3, Leased: 0, Used: 0, Free: 3}, // emulated, for which the operator's limit counts, too
	} {
		got := uses[i]
		if got.Limit != want.Limit || got.Leased != want.Leased || got.Used != want.Used || got.Free != want.Free {
			t.Errorf("%s: %+v, want %+v", got.Name, got, want)
		}
	}
	if err := os.WriteFile(filepath.Join(f.SlotDir, "sev-es"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := SlotUses(f); err == nil {
		t.Error("a pool that is a file can be counted")
	}
}

// TestChoiceOfHost: a host that refuses one technology may do the next; what is
// wrong with the spec leads to none.
func TestChoiceOfHost(t *testing.T) {
	const text = `
name = "vm"
cpu = "EPYC-Milan-v1"
[firmware]
image = "fw"
[confidential]
technology = ["sev-snp", "sev-es"]
[latch]
until = "nothing"
`
	s, err := ParseSpec([]byte(text), "vm.toml", "/")
	if err != nil {
		t.Fatal(err)
	}
	for why, change := range map[string]func(*plan.Facts){
		"check snp-iommu":  func(f *plan.Facts) { f.Host.IOMMU.Passthrough = host.Yes },
		"check snp-kernel": func(f *plan.Facts) { f.Host.Kernel = "6.1.0" },
		"no such object":   func(f *plan.Facts) { delete(f.Info.Objects, "sev-snp-guest") },
		"off": func(f *plan.Facts) {
			f.Host.Technologies[2] = host.Technology{Name: "sev-snp", Usable: host.No, Why: "off"}
		},
		"it has no SEV metadata": func(f *plan.Facts) {
			f.Image = &plan.Image{Lacks: map[string]string{"sev-snp": "it has no SEV metadata"}}
		},
		"":                     func(*plan.Facts) {},
		"memory-backend-memfd": func(f *plan.Facts) { delete(f.Info.Objects, "memory-backend-memfd") },
		"the image demands": func(f *plan.Facts) {
			f.Demands = []*spec.Demands{{Technologies: []string{"sev-es"}, File: &spec.File{Path: "x"}}}
		},
	} {
		if why == "no such object" {
			why = "has no object sev-snp-guest"
		}
		facts := testhost.Facts(change)
		facts.SlotDir = t.TempDir()
		p, err := NewPlan(s, facts, testhost.Root())
		if err != nil {
			t.Errorf("%s: %v", why, err)
			continue
		}
		want := host.SEVES
		if why == "" {
			want = host.SNP
		}
		if p.Technology != want || !strings.Contains(p.Choices[0].From, why) {
			t.Errorf("%s: %+v", why, p.Choices[0])
		}
	}
	any, err := ParseSpec([]byte(strings.Replace(text, `["sev-snp", "sev-es"]`, `["sev-snp", "sev-es", "sev"]`, 1)),
		"vm.toml", "/")
	if err != nil {
		t.Fatal(err)
	}
	var none *fault.Error
	if p, err := NewPlan(any, testhost.Facts(func(f *plan.Facts) {
		f.SlotDir, f.Info, f.Host.SEV.SNPEnabled = t.TempDir(), testhost.QEMU("7.2"), host.Yes
	}), testhost.Root()); !errors.As(err, &none) || none.Kind != fault.Host || none.Check != fault.Technology {
		t.Errorf("on a host that runs SEV-SNP the choice falls to %+v, %v; want the host's fault", p, err)
	}
	// A slot that is taken is waited for, and no reason to take another technology.
	full := testhost.Facts(func(f *plan.Facts) { f.SlotDir, f.Slots = t.TempDir(), map[string]int{"sev-es": 0} })
	if p, err := NewPlan(any, full, testhost.Root()); err != nil || p.Technology != host.SNP {
		t.Errorf("without a slot: %+v, %v", p, err)
	}
	// Its own fault: an ID block of another policy.
	bad, err := ParseSpec(
		[]byte(strings.Replace(text, "technology", "id-block = \"b\"\nid-auth = \"a\"\ntechnology", 1)), "vm.toml",
		"/")
	if err != nil {
		t.Fatal(err)
	}
	if p, err := NewPlan(bad, testhost.Facts(func(f *plan.Facts) {
		f.SlotDir = t.TempDir()
		f.OwnerFiles = map[string][]byte{"id-block": make([]byte, 5)}
	}), testhost.Root()); err == nil {
		t.Errorf("a bad ID block leads to %s", p.Technology)
	} else if e := fault.As(err); e == nil || e.Kind != fault.Spec || e.Key != "id-block" {
		t.Errorf("a bad ID block: %v, want an error about it in the spec", err)
	}
}
