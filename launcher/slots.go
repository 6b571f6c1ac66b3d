package launcher

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/slot"
)

// slotDir is the directory of leases in the run directory; no VM can have its name.
const slotDir = ".slots"

// Slot is the encryption slot that a start takes.
type Slot struct {
	Pool string `json:"pool"`
	Size int    `json:"size"` // -1: unknown
	From string `json:"from"` // where the size comes from
	// InUse is the kernel's count when the plan was made; -1 if it does not count.
	InUse int    `json:"in-use"`
	Dir   string `json:"directory"`
}

func (s *Slot) pool() slot.Pool {
	return slot.Pool{Dir: s.Dir, Name: s.Pool, Size: s.Size, InUse: s.InUse}
}

// take leases a slot. The plan's count of the kernel's is old by now.
func (s *Slot) take() (*slot.Lease, error) {
	p := s.pool()
	if p.InUse >= 0 {
		p.InUse = host.Root("/").InUse(s.Pool)
	}
	return p.Take()
}

// slot returns what a guest of a technology takes; nil if it takes nothing. The
// operator's limit can make a pool smaller, never larger.
func (f *Facts) slot(technology string) *Slot {
	var s *Slot
	if f.emulated() {
		t, _ := technologyByName(technology)
		if t.pool == "" {
			return nil
		}
		s = &Slot{Pool: t.pool, Size: slot.Unlimited, From: "the emulated platform has no limit", InUse: -1}
	} else {
		p, ok := f.Host.PoolOf(technology)
		if !ok {
			return nil
		}
		s = &Slot{Pool: p.Name, Size: p.Total, From: p.From, InUse: p.InUse}
	}
	for _, name := range f.sharing(s.Pool, technology) {
		if limit, ok := f.Slots[name]; ok && (s.Size < 0 || limit < s.Size) {
			s.Size, s.From = limit, "[slots] of host.toml"
		}
	}
	if f.emulated() {
		s.Pool = "emulated-" + s.Pool
	}
	s.Dir = f.SlotDir
	return s
}

// sharing are the names under which an operator may limit a pool: its own, and
// those of the technologies that share it.
func (f *Facts) sharing(pool, technology string) []string {
	if f.emulated() {
		names := []string{pool}
		for _, t := range technologyTable() {
			if t.pool == pool {
				names = append(names, t.name)
			}
		}
		return names
	}
	p, _ := f.Host.PoolOf(technology)
	return append([]string{pool}, p.Technologies...)
}

// SlotUse is how many slots of a pool are taken.
type SlotUse struct {
	host.Pool
	Limit  int `json:"limit"`  // that counts here; -1: none known
	Leased int `json:"leased"` // by VMs of this run directory
	Used   int `json:"used"`
	Free   int `json:"free"` // -1: unknown, for other programs may have some
}

// use counts a pool's slots. exact means that nobody else can have any of them.
func (s *Slot) use(p host.Pool, exact bool) (SlotUse, error) {
	leased, err := s.pool().Leased()
	u := SlotUse{Pool: p, Limit: s.Size, Leased: leased, Used: max(leased, p.InUse), Free: -1}
	if u.Limit >= 0 && (exact || u.Used >= u.Limit) {
		u.Free = max(0, u.Limit-u.Used)
	}
	return u, err
}

// SlotUses counts the slots of all pools of this host, and of emulated ones that
// have leases or a limit.
func (f *Facts) SlotUses() ([]SlotUse, error) {
	uses := []SlotUse{}
	for _, p := range f.Host.Slots {
		u, err := f.slot(p.Technologies[0]).use(p, p.InUse >= 0 && !p.AtLeast)
		if err != nil {
			return nil, err
		}
		uses = append(uses, u)
	}
	byPool := map[string][]string{}
	for _, t := range technologyTable() {
		byPool[t.pool] = append(byPool[t.pool], t.name)
	}
	emulated := *f
	emulated.Emulator = []string{""}
	for _, name := range host.Pools() {
		technologies := byPool[name]
		if technologies == nil {
			continue
		}
		slices.Sort(technologies)
		s := emulated.slot(technologies[0])
		u, err := s.use(host.Pool{Name: s.Pool, Technologies: technologies, Total: s.Size, From: s.From, InUse: -1}, true)
		if err != nil {
			return nil, err
		}
		if u.Leased > 0 || u.Limit >= 0 {
			uses = append(uses, u)
		}
	}
	return uses, nil
}

// maxLock is how much memory a child may be allowed to pin.
func maxLock() uint64 {
	var l unix.Rlimit
	if mayRaiseLimits() {
		return math.MaxUint64
	}
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l) != nil {
		return 0
	}
	return l.Max
}

// mayRaiseLimits says whether this process has CAP_SYS_RESOURCE (capabilities(7)).
func mayRaiseLimits() bool {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&head, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// allowLock raises this process's own limit, which a child inherits.
func allowLock(need Size) error {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l); err != nil {
		return os.NewSyscallError("getrlimit", err)
	}
	if l.Cur >= uint64(need) {
		return nil
	}
	was := l.Max
	l = unix.Rlimit{Cur: uint64(need), Max: max(l.Max, uint64(need))}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &l); err != nil {
		return &HostError{
			Want: fmt.Sprintf("let QEMU pin %v of memory", need), Why: fmt.Sprintf("the limit is %v (RLIMIT_MEMLOCK): %v", Size(was), err),
			Fix: "raise it: LimitMEMLOCK= of the unit, memlock in limits.conf, or ulimit -l",
		}
	}
	return nil
}

// slotBusy matches what QEMU says when the platform has no slot to give: the
// firmware's RESOURCE_LIMIT, WBINVD_REQUIRED and DFFLUSH_REQUIRED, the kernel's EBUSY. Slots come
// back late: the kernel flushes caches before it gives one out again (Linux,
// arch/x86/kvm/svm/sev.c, sev_flush_asids).
const slotBusy = `fw_error=(?:23|14|15) |kvm_init: failed to initialize ret=-16 |KVM_TDX_INIT_VM failed.*(?:resource busy|No space left)`

// retryFirst and retryFactor space the attempts of a start that found no slot.
const (
	retryFirst  = 100 * time.Millisecond
	retryFactor = 2
)

// retrying starts a machine, again while the platform may be about to give a slot
// back.
func retrying(ctx context.Context, name string, opt StartOptions, start func() (*Machine, error)) (*Machine, error) {
	var waited time.Duration
	for attempt, wait := 1, retryFirst; ; attempt, wait = attempt+1, wait*retryFactor {
		m, err := start()
		var failed *StartError
		late := errors.As(err, &failed) && regexp.MustCompile(slotBusy).MatchString(failed.Stderr)
		if err == nil || !late && !errors.Is(err, slot.ErrNone) {
			return m, err
		}
		if waited+wait > opt.SlotWait {
			if late && attempt > 1 {
				failed.Attempts = attempt
			}
			return nil, err
		}
		if opt.Notice != nil {
			opt.Notice(fmt.Sprintf("%s: there is no free encryption slot yet; trying again in %v", name, wait))
		}
		select {
		case <-time.After(wait):
			waited += wait
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
