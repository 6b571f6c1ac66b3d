package plan_test

import (
	"testing"

	"github.com/vmlatch/vmlatch/firmware/bytesize"
	"github.com/vmlatch/vmlatch/launcher/plan"
)

// TestBudget: what guests take of a host's memory.
func TestBudget(t *testing.T) {
	private := plan.Traits{Confidential: true, Private: true}
	for _, c := range []struct {
		memory  bytesize.Size
		cmdline string
		traits  plan.Traits
		want    bytesize.Size
	}{
		{4 << 30, "", plan.Traits{}, 4 << 30},
		{4 << 30, "", plan.Traits{Confidential: true}, 4<<30 + 256<<20},
		{512 << 20, "", private, 512<<20 + 64<<20 + 256<<20},
		{100 << 30, "quiet", private, 100<<30 + 1<<30 + 256<<20},
		{10 << 30, "", private, 10<<30 + 10<<30*6/100 + 256<<20},
		{4 << 30, "swiotlb=262144,force quiet", private, 4<<30 + 512<<20 + 256<<20},
		{4 << 30, "swiotlb=noforce", private, 4<<30 + 4<<30*6/100 + 256<<20},
	} {
		g := plan.NewGuest()
		g.Memory, g.Kernel.Cmdline = c.memory, c.cmdline
		if got := g.Budget(c.traits); got != c.want {
			t.Errorf("%v, %q: %v, want %v", c.memory, c.cmdline, got, c.want)
		}
	}
}
