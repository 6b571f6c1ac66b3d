package plan_test

import (
	"bytes"
	"encoding/json"
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

	"github.com/vmlatch/vmlatch/keyring"
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
	dir, err := root.Create("vm")
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
	want := []string{"vm-lock", "qmp", "monitor", "events", "console", "slot"}
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

// TestErrorsOfTechnologiesEndAPlan.
func TestErrorsOfTechnologiesEndAPlan(t *testing.T) {
	p, err := plan.Build(new(guest(t, "")), failing{}, rundir.Choice{}, testhost.Facts(), testhost.Root())
	if p != nil || !errors.Is(err, errFailing) {
		t.Errorf("%+v, %v, want %v", p, err, errFailing)
	}
}

type failing struct{ withHelper }

var errFailing = errors.New("it does not work")

func (failing) Build(*plan.Builder) error { return errFailing }

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
	if _, err := p.FDs[len(p.FDs)-1].Open(o); err != nil {
		t.Errorf("a slot that was in use when the plan was made: %v, want it counted anew", err)
	}
}

// TestKeyStandsInOnePlace: the handle of a key replaces its own mark, and no text that
// a user wrote.
func TestKeyStandsInOnePlace(t *testing.T) {
	const text = `
cpu = "@key@"
device = [{driver = "a", x = "@key@"}]
object = [{qom-type = "b", id = "y", z = "@key@"}]
[firmware]
image = "f"
[confidential]
technology = "mktme"
mktme = { object = "mktme-guest", handle-property = "key-handle" }
[latch]
until = "nothing"`
	facts := testhost.Facts()
	facts.Info.Objects["mktme-guest"] = []string{"key-handle"}
	p := mustPlan(t, text, facts)
	if p.Key == nil || p.Key.Type != keyring.TypeMKTME || p.Key.Description != "vmlatch:vm" {
		t.Fatalf("key %+v, want one of type %s for vmlatch:vm", p.Key, keyring.TypeMKTME)
	}
	before := slices.Clone(p.Argv)
	got := p.Key.Command(p.Argv, 42)
	const object = `{"id":"cgs0","key-handle":"@key@","qom-type":"mktme-guest"}`
	want := slices.Clone(before)
	want[slices.Index(want, object)] = strings.Replace(object, `"@key@"`, "42", 1)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("command line (-want +got):\n%s", diff)
	}
	if !slices.Equal(p.Argv, before) {
		t.Error("the plan's own command line changed")
	}
	for _, argv := range [][]string{{object}, {"-device", object}, {"-object", "x" + object}, {"-object"}, nil} {
		if got := p.Key.Command(argv, 42); !slices.Equal(got, argv) {
			t.Errorf("%q became %q, want it unchanged: there is no object for the key", argv, got)
		}
	}
}

// TestMissing: files that QEMU could not read, each with its use and its cause. Nothing
// waits for the writer of a pipe.
func TestMissing(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	l, err := net.Listen("unix", path("socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := errors.Join(
		os.WriteFile(path("file"), nil, 0o600), unix.Mkfifo(path("pipe"), 0o600),
		os.Symlink("file", path("link")), os.Symlink("x", path("nowhere")),
	); err != nil {
		t.Fatal(err)
	}
	const neither = "neither a regular file nor a block device"
	for name, want := range map[string]string{
		"file": "", "link": "", "missing": "no such file", "nowhere": "no such file", "pipe": neither,
		".": "is a directory", "socket": "no such device or address",
		"/dev/null": neither, "file/x": "not a directory",
	} {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		p := mustPlan(t, "disk = [{image = '"+name+"'}]", testhost.Facts())
		before := descriptors(t)
		missing := p.Missing()
		if want == "" {
			if len(missing) > 0 {
				t.Errorf("%s: %v, want nothing missing", name, missing)
			}
			continue
		}
		if len(missing) != 1 || !strings.Contains(missing[0].Error(), want) ||
			!strings.Contains(missing[0].Error(), "disk: open "+name) {
			t.Errorf("%s: %v, want one error of the disk with %q", name, missing, want)
		}
		if after := descriptors(t); after != before {
			t.Errorf("%s: %d descriptors are open, want %d as before", name, after, before)
		}
	}
	p := mustPlan(t, sevSpec, testhost.Facts())
	var uses []string
	for _, err := range p.Missing() {
		use, _, _ := strings.Cut(strings.TrimPrefix(err.Error(), "vm.toml: "), ":")
		uses = append(uses, use)
	}
	if want := []string{"firmware", "kernel", "initrd", "owner-cert", "session"}; !slices.Equal(uses, want) {
		t.Errorf("a guest of which no file is there lacks %q, want %q", uses, want)
	}
	if n := len(p.Missing()); n != 5 || len(p.Files) != 3 {
		t.Errorf("looked at again %d are missing of %d, want 5 of 3 and the owner's", n, len(p.Files))
	}
}

// TestCommandLineOfAPlan can be typed, and has the emulator before QEMU.
func TestCommandLineOfAPlan(t *testing.T) {
	f := testhost.Facts(testhost.Emulated("/usr/bin/swtee", "--platform", "/p q", "--"))
	p := mustPlan(t, sevSpec, f)
	const want = "/usr/bin/swtee --platform '/p q' -- /usr/bin/qemu-system-x86_64 -name guest=vm "
	if got := p.CommandLine(); !strings.HasPrefix(got, want) {
		t.Errorf("%s, want it to begin with %s", got, want)
	}
	if got := p.QEMUArgv(); got[0] != "/usr/bin/qemu-system-x86_64" || len(got) != len(p.Argv)-4 {
		t.Errorf("without the emulator: %q, want QEMU first", got)
	}
	b, err := json.Marshal(p)
	if err != nil || !p.Emulated || !bytes.Contains(b, []byte(`"schema":"vmlatch.plan/1"`)) {
		t.Errorf("emulated %t, %s, %v, want an emulated plan of schema vmlatch.plan/1", p.Emulated, b, err)
	}
}
