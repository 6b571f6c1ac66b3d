package plan_test

import (
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

func TestHelperTalksToQEMU(t *testing.T) {
	dir, o := opening(t)
	p := mustPlan(t, "", testhost.Facts())
	number := p.AddHelper("tpm", "a TPM", func(fd int) []string { return []string{"swtpm", strconv.Itoa(fd)} })
	if want := 3 + len(p.FDs) - 1; number != want {
		t.Errorf("QEMU's end is descriptor %d, want %d, the last", number, want)
	}
	h := p.Helpers[0]
	if want := []string{"swtpm", "3"}; len(p.Helpers) != 1 || h.Role != "tpm" || !slices.Equal(h.Argv, want) {
		t.Errorf("helpers %+v, want one of role tpm with command line %q", p.Helpers, want)
	}
	theirs, lock, qemus := open(t, h.FDs, "tpm", o), open(t, h.FDs, "helper-lock", o), open(t, p.FDs, "tpm", o)
	if _, err := theirs.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := io.ReadFull(qemus, b); err != nil || b[0] != 'x' {
		t.Errorf("QEMU reads %q, %v, want x", b, err)
	}
	// A second helper has a pair of its own, and the same lock.
	p.AddHelper("net", "a network", func(int) []string { return nil })
	other, second := open(t, p.Helpers[1].FDs, "net", o), open(t, p.Helpers[1].FDs, "helper-lock", o)
	if _, err := other.WriteString("y"); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(qemus.Fd()), Events: unix.POLLIN}}, 0); n != 0 || err != nil {
		t.Errorf("what the second helper writes comes to the first's pair: %d, %v, want nothing", n, err)
	}
	path := lock.Name()
	o.Close()
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if !locked(t, path) {
		t.Error("the helpers' lock is free while one of two holds it, want it held")
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if locked(t, path) {
		t.Error("the helpers' lock is held after both, want it free")
	}
	if !strings.HasPrefix(path, dir.Run) {
		t.Errorf("the helpers' lock is %s, want it in %s", path, dir.Run)
	}
}

// TestClosingAnOpeningLeavesNothing: ends of pairs that QEMU did not get are closed, so
// that the helper notices.
func TestClosingAnOpeningLeavesNothing(t *testing.T) {
	_, o := opening(t)
	p := mustPlan(t, "", testhost.Facts())
	p.AddHelper("tpm", "a TPM", func(int) []string { return nil })
	before := descriptors(t)
	theirs, lock := open(t, p.Helpers[0].FDs, "tpm", o), open(t, p.Helpers[0].FDs, "helper-lock", o)
	o.Close()
	if _, err := theirs.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the helper reads %v, want %v", err, io.EOF)
	}
	if err := errors.Join(theirs.Close(), lock.Close()); err != nil {
		t.Fatal(err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors are open, want %d as before", after, before)
	}
	o.Close() // again, which does nothing
}

// TestHelpersLockThatCannotBeMade: its directory is gone.
func TestHelpersLockThatCannotBeMade(t *testing.T) {
	dir, o := opening(t)
	p := mustPlan(t, "", testhost.Facts())
	p.AddHelper("tpm", "a TPM", func(int) []string { return nil })
	if err := os.RemoveAll(dir.Run); err != nil {
		t.Fatal(err)
	}
	if f, err := p.Helpers[0].FDs[1].Open(o); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, %v, want %v", f, err, os.ErrNotExist)
	}
}

// TestBuilderAddsHelpers: a technology can bring one.
func TestBuilderAddsHelpers(t *testing.T) {
	p, err := plan.Build(new(guest(t, "")), withHelper{}, rundir.Choice{}, testhost.Facts(), testhost.Root())
	if err != nil || len(p.Helpers) != 1 || !slices.Contains(p.Argv, "fd=3") {
		t.Errorf("%+v, %v, want a helper and the number of QEMU's end", p, err)
	}
	if want := []string{"firmware image", "a test"}; !slices.Equal(p.Covers.Covered, want) {
		t.Errorf("a measurement covers %q, want %q", p.Covers.Covered, want)
	}
}

type withHelper struct{}

func (withHelper) Traits() plan.Traits { return plan.Traits{Name: "test"} }
func (withHelper) Build(b *plan.Builder) error {
	fd := b.Help("test", "a test's helper", func(int) []string { return nil })
	b.Option("-test", "fd="+strconv.Itoa(fd))
	b.Covers("a test")
	return nil
}

// TestErrorsOfTechnologiesEndAPlan: there is no plan without its protection.
func TestErrorsOfTechnologiesEndAPlan(t *testing.T) {
	p, err := plan.Build(new(guest(t, "")), failing{}, rundir.Choice{}, testhost.Facts(), testhost.Root())
	if p != nil || !errors.Is(err, errFailing) {
		t.Errorf("%+v, %v, want %v", p, err, errFailing)
	}
}

type failing struct{ withHelper }

var errFailing = errors.New("it does not work")

func (failing) Build(*plan.Builder) error { return errFailing }
