package launcher

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/slot"
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
	need := lockedMemory(64 << 20)
	err := allowLock(need)
	var lacking *HostError
	var now unix.Rlimit
	if e := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &now); e != nil {
		t.Fatal(e)
	}
	switch {
	case err == nil && now.Cur < uint64(need):
		t.Errorf("the limit is %d, QEMU needs %d", now.Cur, need)
	case err != nil && (!errors.As(err, &lacking) || !errors.Is(err, ErrHost) || lacking.Fix == "" || !strings.Contains(err.Error(), "RLIMIT_MEMLOCK")):
		t.Errorf("%v", err)
	}
}

// TestSlotOf: whose slots a technology takes, and how many there are.
func TestSlotOf(t *testing.T) {
	f := machine(func(f *Facts) { f.Slots = map[string]int{"sev": 15, "sev-es": 500} })
	for tech, want := range map[string]Slot{
		TechnologySEV:   {Pool: "sev", Size: 15, From: "[slots] of host.toml", InUse: 1, Dir: f.SlotDir},
		TechnologySEVES: {Pool: "sev-es", Size: 99, From: "misc.capacity", InUse: -1, Dir: f.SlotDir}, // an operator cannot add any
		TechnologySNP:   {Pool: "sev-es", Size: 99, From: "misc.capacity", InUse: -1, Dir: f.SlotDir},
	} {
		if got := f.slot(tech); got == nil || *got != want {
			t.Errorf("%s: %+v, want %+v", tech, got, want)
		}
	}
	f.Slots["sev-snp"] = 7 // who shares its slots is limited with it
	for _, tech := range []string{TechnologySEVES, TechnologySNP} {
		if got := f.slot(tech); got.Size != 7 {
			t.Errorf("%s: %+v", tech, got)
		}
	}
	delete(f.Slots, "sev-snp")
	for _, tech := range []string{TechnologyNone, TechnologyTDX} {
		if got := f.slot(tech); got != nil {
			t.Errorf("%s: %+v", tech, got)
		}
	}
	f.Emulator = []string{"swtee", "--"}
	if got := f.slot(TechnologySNP); got == nil || got.Pool != "emulated-sev-es" || got.Size != 500 {
		t.Errorf("emulated: %+v", got)
	}
	if got := f.slot(TechnologyTDX); got == nil || got.Pool != "emulated-tdx" || got.Size != slot.Unlimited {
		t.Errorf("emulated: %+v", got)
	}
}

// TestSlotUses: the larger of leases and the kernel's count is what is used.
func TestSlotUses(t *testing.T) {
	f := machine(func(f *Facts) { f.SlotDir = t.TempDir(); f.Slots = map[string]int{"sev": 3} })
	pool := slot.Pool{Dir: f.SlotDir, Name: "sev", Size: 3, InUse: -1}
	a, err1 := pool.Take()
	b, err2 := pool.Take()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	defer a.File().Close()
	defer b.File().Close()
	f.Host.Slots = append(f.Host.Slots, host.Pool{Name: "tdx", Technologies: []string{"tdx"}, Total: -1, InUse: 4})
	uses, err := f.SlotUses()
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
	if _, err := f.SlotUses(); err == nil {
		t.Error("a pool that is a file can be counted")
	}
}
