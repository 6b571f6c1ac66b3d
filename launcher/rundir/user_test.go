package rundir_test

import (
	"errors"
	"os"
	"testing"

	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// TestReserveUsers: the processes of VMs have different ids, out of those that are set aside and
// not busy, and ids are free again when their VM has gone.
func TestReserveUsers(t *testing.T) {
	r := root(t)
	const first, count = 200000, 6
	busy := func() map[int]bool { return map[int]bool{first + 1: true} }
	seen := map[int]bool{}
	var dirs []*rundir.Dir
	for _, name := range []string{"a", "b"} {
		d := create(t, r, name)
		dirs = append(dirs, d)
		ids, err := d.ReserveUsers(t.Context(), 2, first, count, busy())
		if err != nil || len(ids) != 2 {
			t.Fatal(ids, err)
		}
		for _, id := range ids {
			if seen[id] || busy()[id] || id < first || id >= first+count {
				t.Errorf("%s has %d", name, id)
			}
			seen[id] = true
		}
	}
	c := create(t, r, "c")
	if id, err := c.ReserveUsers(t.Context(), 2, first, count, busy()); !errors.Is(err, rundir.ErrNoUser) {
		t.Errorf("%v, %v, want too few left", id, err)
	}
	if err := dirs[0].Discard(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReserveUsers(t.Context(), 2, first, count, busy()); err != nil {
		t.Errorf("the ids of a VM that has gone are not free: %v", err)
	}
	if err := dirs[1].MakeScreen(); err != nil {
		t.Fatal(err)
	}
	if err := dirs[1].GiveTo(os.Geteuid()); err != nil {
		t.Error(err)
	}
}
