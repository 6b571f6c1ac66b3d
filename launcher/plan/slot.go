package plan

import (
	"os"

	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/slot"
)

// Slot is the encryption slot that a start takes.
type Slot struct {
	Pool string `json:"pool"`
	Size int    `json:"size"` // -1: unknown
	From string `json:"from"` // where the size comes from
	// InUse is the kernel's count when the plan was made; -1 if it does not count.
	InUse int    `json:"in-use"`
	Dir   string `json:"directory"`
}

// Leases are the pool's leases.
func (s *Slot) Leases() slot.Pool {
	return slot.Pool{Dir: s.Dir, Name: s.Pool, Size: s.Size, InUse: s.InUse}
}

// take leases a slot. The plan's copy of the kernel's count is old by now.
func (s *Slot) take(o *Opening) (*os.File, error) {
	p := s.Leases()
	if p.InUse >= 0 {
		p.InUse = host.Root("/").InUse(s.Pool)
	}
	if n := o.Dir.Root().WithSlot(s.Pool); n > 0 {
		p.InUse = max(p.InUse, n)
	}
	lease, err := p.Take()
	if err != nil {
		return nil, err
	}
	return lease.File(), nil
}

// slot leases an encryption slot, where the technology takes one.
func (b *Builder) slot() {
	s := b.Facts.Slot(b.Traits)
	if b.plan.Slot = s; s != nil {
		inherit(&b.plan.FDs, FD{Role: "slot", Meaning: "the lease of an encryption slot", step: "slot", open: s.take})
	}
}

// Slot is what a guest of a technology takes; nil if it takes nothing. The operator's
// limit can make a pool smaller, never larger.
func (f *Facts) Slot(t Traits) *Slot {
	if f.Emulated() {
		if t.Pool == "" {
			return nil
		}
		return f.EmulatedSlot(t.Pool, t.Sharing)
	}
	p, ok := f.Host.PoolOf(t.Name)
	if !ok {
		return nil
	}
	return f.HostSlot(p)
}

// HostSlot is a slot of one of the host's pools.
func (f *Facts) HostSlot(p host.Pool) *Slot {
	return f.limited(&Slot{Pool: p.Name, Size: p.Total, From: p.From, InUse: p.InUse}, p.Technologies)
}

// EmulatedSlot is a slot of an emulated pool, which technologies share.
func (f *Facts) EmulatedSlot(pool string, technologies []string) *Slot {
	s := &Slot{Pool: pool, Size: slot.Unlimited, From: "the emulated platform has no limit", InUse: -1}
	s = f.limited(s, technologies)
	s.Pool = "emulated-" + s.Pool
	return s
}

// limited applies the operator's limits: of the pool, and of the technologies that
// share it.
func (f *Facts) limited(s *Slot, technologies []string) *Slot {
	for _, name := range append([]string{s.Pool}, technologies...) {
		if limit, ok := f.Slots[name]; ok && (s.Size < 0 || limit < s.Size) {
			s.Size, s.From = limit, "[slots] of host.toml"
		}
	}
	s.Dir = f.SlotDir
	return s
}
