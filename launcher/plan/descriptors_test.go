package plan_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/slot"
)

// opening is a VM's directory and what openers work with there.
func opening(t *testing.T) (*rundir.Dir, *plan.Opening) {
	t.Helper()
	top := t.TempDir()
	root := rundir.Root{Run: filepath.Join(top, "run"), State: filepath.Join(top, "state")}
	dir, err := root.Create(t.Context(), "vm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dir.Close)
	o := &plan.Opening{Dir: dir, Kept: map[string]net.Conn{}}
	t.Cleanup(o.Close)
	return dir, o
}

// open opens the descriptor of a role.
func open(t *testing.T, fds []plan.FD, role string, o *plan.Opening) *os.File {
	t.Helper()
	i := slices.IndexFunc(fds, func(f plan.FD) bool { return f.Role == role })
	if i < 0 {
		t.Fatalf("no descriptor of role %s: %+v", role, fds)
	}
	f, err := fds[i].Open(o)
	if err != nil {
		t.Fatalf("%s: %v", role, err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// TestDescriptorsAreNumbered in the order in which QEMU inherits them, behind the
// standard streams.
func TestDescriptorsAreNumbered(t *testing.T) {
	p := mustPlan(t, sevSpec, testhost.Facts())
	want := []string{"vm-lock", "qmp", "monitor", "events", "events.log", "console", "console.log", "slot"}
	var got []string
	for i, f := range p.FDs {
		got = append(got, f.Role)
		if f.Number != 3+i || f.Meaning == "" {
			t.Errorf("%+v, want number %d and a meaning", f, 3+i)
		}
		step := ""
		if f.Role == "slot" {
			step = "slot"
		}
		if f.Step() != step {
			t.Errorf("%s: step %q, want %q", f.Role, f.Step(), step)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("roles (-want +got):\n%s", diff)
	}
	for _, chardev := range plan.ParseOptions(p.Argv).Values["-chardev"] {
		o := plan.Properties(chardev)
		fd, err := strconv.Atoi(o["fd"])
		if err != nil || fd < 3 || p.FDs[fd-3].Role != o["id"] {
			t.Errorf("%s: does not use the descriptor of its role; they are %+v", chardev, p.FDs)
		}
	}
}

func TestListeningSocketsTakeConnections(t *testing.T) {
	dir, o := opening(t)
	p := mustPlan(t, "", testhost.Facts())
	for role, name := range map[string]string{
		"qmp": rundir.QMPSocket, "monitor": rundir.MonitorSocket, "console": rundir.ConsoleSocket,
	} {
		f := open(t, p.FDs, role, o)
		if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("%s: descriptor flags %#x, %v, want close-on-exec", role, flags, err)
		}
		c, err := net.Dial("unix", dir.Path(name))
		if err != nil {
			t.Errorf("%s: %v", role, err)
			continue
		}
		defer c.Close()
		accepted, _, err := unix.Accept(int(f.Fd()))
		if err != nil {
			t.Errorf("%s: accept: %v", role, err)
			continue
		}
		defer unix.Close(accepted)
		if _, err := c.Write([]byte("x")); err != nil {
			t.Errorf("%s: %v", role, err)
		}
		b := make([]byte, 1)
		if n, err := unix.Read(accepted, b); n != 1 || err != nil || b[0] != 'x' {
			t.Errorf("%s: read %q, %v, want x", role, b[:n], err)
		}
	}
	// The path is taken now.
	i := slices.IndexFunc(p.FDs, func(f plan.FD) bool { return f.Role == "qmp" })
	before := descriptors(t)
	_, err := p.FDs[i].Open(o)
	if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), dir.Path(rundir.QMPSocket)) {
		t.Errorf("a second listener: %v, want %v with its path", err, unix.EADDRINUSE)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors after it failed, want %d", after, before)
	}
}

// descriptors counts those of this process.
func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestEventsGoOverAPair whose other end the launcher keeps.
func TestEventsGoOverAPair(t *testing.T) {
	_, o := opening(t)
	f := open(t, mustPlan(t, "", testhost.Facts()).FDs, plan.RoleEvents, o)
	kept := o.Kept[plan.RoleEvents]
	if kept == nil {
		t.Fatal("the launcher keeps no end")
	}
	if _, err := f.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := io.ReadFull(kept, b); err != nil || b[0] != 'x' {
		t.Errorf("read %q, %v, want x", b, err)
	}
	o.Close()
	if _, err := kept.Read(b); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the launcher's end after Close: %v, want %v", err, net.ErrClosed)
	}
}

// locked reports whether another open file of the path could not get its lock.
func locked(t *testing.T, path string) bool {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
		t.Fatal(err)
	}
	return err != nil
}

// TestInheritedLockIsTheVMs: it is held for as long as one of its descriptors is open,
// in whichever process.
func TestInheritedLockIsTheVMs(t *testing.T) {
	dir, o := opening(t)
	path := filepath.Join(dir.Run, filepath.Base(dir.VMLockFile().Name()))
	f := open(t, mustPlan(t, "", testhost.Facts()).FDs, "vm-lock", o)
	if f.Fd() == dir.VMLockFile().Fd() {
		t.Error("the descriptor is the launcher's own, want a second one of the same file")
	}
	dir.DropVMLock()
	if !locked(t, path) {
		t.Error("the lock is free after the launcher let go of it, want QEMU to hold it")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if locked(t, path) {
		t.Error("the lock is held after QEMU's end, want it free")
	}
}

// TestALockThatCannotBeInherited: there is no file to make a second descriptor of.
func TestALockThatCannotBeInherited(t *testing.T) {
	dir, o := opening(t)
	p := mustPlan(t, "", testhost.Facts())
	if err := dir.VMLockFile().Close(); err != nil {
		t.Fatal(err)
	}
	if f, err := p.FDs[0].Open(o); !errors.Is(err, unix.EBADF) {
		t.Errorf("%v, %v, want %v", f, err, unix.EBADF)
	}
}

// TestSlotIsLeased for as long as its descriptor is open.
func TestSlotIsLeased(t *testing.T) {
	_, o := opening(t)
	facts := testhost.Facts(func(f *plan.Facts) {
		f.SlotDir = filepath.Join(t.TempDir(), "slots")
		f.Slots = map[string]int{"sev": 1}
		f.Host.Slots[0].InUse = -1
	})
	p := mustPlan(t, sevSpec, facts)
	count := func(want int) {
		t.Helper()
		if got, err := p.Slot.Leases().Leased(); err != nil || got != want {
			t.Errorf("%d slots are leased, %v, want %d", got, err, want)
		}
	}
	count(0)
	f := open(t, p.FDs, "slot", o)
	count(1)
	if _, err := p.FDs[len(p.FDs)-1].Open(o); !errors.Is(err, slot.ErrNone) {
		t.Errorf("a second lease of one slot: %v, want %v", err, slot.ErrNone)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	count(0)
}

// TestSlotsAreCountedWhenOneIsTaken: the plan's count is old by then. This host's
// kernel either does not count, or counts no emulated guests.
func TestSlotsAreCountedWhenOneIsTaken(t *testing.T) {
	_, o := opening(t)
	p := mustPlan(t, sevSpec, testhost.Facts(func(f *plan.Facts) {
		f.SlotDir = filepath.Join(t.TempDir(), "slots")
		f.Host.Slots[0].Name, f.Host.Slots[0].Total, f.Host.Slots[0].InUse = "no-such-pool", 1, 1
	}))
	f, err := p.FDs[len(p.FDs)-1].Open(o)
	if err != nil {
		t.Fatalf("a slot that was in use when the plan was made: %v, want it counted anew", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}
