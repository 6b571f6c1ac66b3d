package rundir_test

import (
	"errors"
	"os"
	"testing"

	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// TestReserveUser: VMs have different ids, out of those that are set aside and not busy, and an id
// is free again when its VM has gone.
func TestReserveUser(t *testing.T) {
	r := root(t)
	const first, count = 200000, 3
	busy := func() map[int]bool { return map[int]bool{first + 1: true} }
	seen := map[int]bool{}
	var dirs []*rundir.Dir
	for _, name := range []string{"a", "b"} {
		d := create(t, r, name)
		dirs = append(dirs, d)
		id, err := d.ReserveUser(t.Context(), first, count, busy())
		if err != nil {
			t.Fatal(err)
		}
		if seen[id] || busy()[id] || id < first || id >= first+count {
			t.Errorf("%s has %d", name, id)
		}
		seen[id] = true
	}
	c := create(t, r, "c")
	if id, err := c.ReserveUser(t.Context(), first, count, busy()); !errors.Is(err, rundir.ErrNoUser) {
		t.Errorf("%d, %v, want none left", id, err)
	}
	if err := dirs[0].Discard(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReserveUser(t.Context(), first, count, busy()); err != nil {
		t.Errorf("the id of a VM that has gone is not free: %v", err)
	}
	if err := dirs[1].MakeScreen(); err != nil {
		t.Fatal(err)
	}
	if err := dirs[1].GiveTo(os.Geteuid()); err != nil {
		t.Error(err)
	}
}
