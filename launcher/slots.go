package launcher

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vmlatch/vmlatch/launcher/advice"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/slot"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// SlotUse is how many slots of a pool are taken.
type SlotUse struct {
	host.Pool
	Limit  int `json:"limit"`  // that counts here; -1: none known
	Leased int `json:"leased"` // by VMs of this run directory
	Used   int `json:"used"`
	Free   int `json:"free"` // -1: unknown, for other programs may have some
}

// use counts a pool's slots. exact means that other programs cannot have any of them.
func use(s *plan.Slot, p host.Pool, exact bool) (SlotUse, error) {
	leased, err := s.Leases().Leased()
	u := SlotUse{Pool: p, Limit: s.Size, Leased: leased, Used: max(leased, p.InUse), Free: -1}
	if u.Limit >= 0 && (exact || u.Used >= u.Limit) {
		u.Free = max(0, u.Limit-u.Used)
	}
	return u, err
}

// SlotUses counts the slots of all pools of this host, and of emulated ones that have
// leases or a limit.
func SlotUses(f *plan.Facts) ([]SlotUse, error) {
	uses := []SlotUse{}
	for _, p := range f.Host.Slots {
		u, err := use(f.HostSlot(p), p, p.InUse >= 0 && !p.AtLeast)
		if err != nil {
			return nil, err
		}
		uses = append(uses, u)
	}
	for _, name := range host.Pools() {
		technologies := tee.Sharing(name)
		if technologies == nil {
			continue
		}
		slices.Sort(technologies)
		s := f.EmulatedSlot(name, technologies)
		p := host.Pool{Name: s.Pool, Technologies: technologies, Total: s.Size, From: s.From, InUse: -1}
		u, err := use(s, p, true)
		if err != nil {
			return nil, err
		}
		if u.Leased > 0 || u.Limit >= 0 {
			uses = append(uses, u)
		}
	}
	return uses, nil
}

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
		late := advice.For(err).Late
		if err == nil || !late && !errors.Is(err, slot.ErrNone) {
			return m, err
		}
		if waited+wait > opt.SlotWait {
			if e := fault.As(err); late && attempt > 1 {
				e.Err = fmt.Errorf("%w (tried %d times)", e.Err, attempt)
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
