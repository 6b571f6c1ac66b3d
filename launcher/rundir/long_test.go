//go:build !quick

package rundir_test

import (
	"errors"
	"testing"

	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// TestHelpersGoWithTheDirectory: without it they could not be found any more.
func TestHelpersGoWithTheDirectory(t *testing.T) {
	for what, clear := range map[string]func(rundir.Root) error{
		"Sweep":  func(r rundir.Root) error { _, _, err := r.Sweep(t.Context()); return err },
		"Forget": func(r rundir.Root) error { return r.Forget(t.Context(), "a") },
		"Create": func(r rundir.Root) error {
			d, err := r.Create(t.Context(), "a")
			if err == nil {
				d.Close()
			}
			return err
		},
	} {
		r := root(t)
		d := create(t, r, "a")
		settle(t, d, 0)
		h := helper(t, d)
		d.Close() // the launcher dies, and so does QEMU
		if err := clear(r); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		killed(t, what, h)
	}
}

// TestHelpersOfALaterVM are not those of the one that a Dir is about.
func TestHelpersOfALaterVM(t *testing.T) {
	r := root(t)
	d, cmd := start(t, r, "a")
	found := find(t, r, "a")
	first := helper(t, d)
	end(cmd)
	if err := found.KillHelpers(t.Context()); err != nil {
		t.Fatal(err)
	}
	killed(t, "KillHelpers", first)
	if _, _, err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	later := create(t, r, "a")
	second := helper(t, later)
	for what, old := range map[string]*rundir.Dir{"created": d, "found": found} {
		if err := errors.Join(old.KillHelpers(t.Context()), old.KillOwner(t.Context())); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if !alive(t, second) {
		t.Error("a later VM's helper was killed")
	}
	if err := later.KillHelpers(t.Context()); err != nil {
		t.Fatal(err)
	}
	killed(t, "of the later VM", second)
}
