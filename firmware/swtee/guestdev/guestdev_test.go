package guestdev

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/swtee/guestdev/tsmprobe"
	"github.com/vmlatch/vmlatch/firmware/swtee/port"
)

// host plays the platform: its reports say which data, and how many there were.
type host struct {
	technology string
	mu         sync.Mutex
	asked      int
	fail       []port.Answer // for the next requests; the zero value passes
	release    chan struct{} // if set, reports wait for it
	registers  [registerCount][48]byte
}

func (h *host) answer(t port.Type, b []byte) port.Answer {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch t {
	case port.Hello:
		text, _ := json.Marshal(port.About{Emulated: true, Technology: h.technology, Label: "for a test"})
		return port.Answer{Data: text}
	case port.Report:
		h.asked++
		if h.release != nil {
			<-h.release
		}
		if len(h.fail) > 0 {
			a := h.fail[0]
			if h.fail = h.fail[1:]; a.Status != 0 || a.Firmware != 0 {
				return a
			}
		}
		data, vmpl, ok := port.ParseReport(b)
		if !ok {
			return port.Answer{Status: unix.EINVAL}
		}
		return port.Answer{Data: slices.Concat(data[:], []byte(fmt.Sprintf("vmpl %d, request %6d", vmpl, h.asked)),
			bytes.Repeat([]byte{7}, 1000))}
	case port.Extend:
		n, digest, ok := port.ParseExtend(b)
		if !ok || n > 3 {
			return port.Answer{Status: unix.EINVAL}
		}
		h.registers[n] = digest
		return port.Answer{}
	case port.Registers:
		var all []byte
		for _, r := range h.registers {
			all = append(all, r[:]...)
		}
		return port.Answer{Data: all}
	}
	return port.Answer{Status: unix.ENOTTY}
}

func newTestPlatform(t testing.TB, h *host) *platform {
	t.Helper()
	guest, hostEnd := net.Pipe()
	go func() { _ = port.Serve(hostEnd, h.answer) }()
	t.Cleanup(func() { _ = guest.Close() })
	p, err := newPlatform(guest)
	if err != nil {
		t.Fatal(err)
	}
	p.wait = func(ctx context.Context, _ time.Duration) error {
		if h.technology == tdxGuest { // a quote that is waited for comes
			<-ctx.Done()
		}
		return ctx.Err()
	}
	return p
}

// mountHere mounts a tree on this machine.
func mountHere(t testing.TB, tr tree) (dir string) {
	t.Helper()
	dir = t.TempDir()
	c, m, err := mount(tr, dir)
	if err != nil {
		t.Skipf("mount fuse: %v", err)
	}
	go func() { _ = c.serve(m.answer) }()
	t.Cleanup(func() {
		if err := m.unmount(); err != nil {
			t.Error(err)
		}
		_ = c.dev.Close()
	})
	return dir
}

// kernels is how Linux 6.12's own configfs-tsm answers, with a provider like sev-guest; sizes of
// reports are those of the test's platform.
const kernels = `mkdir: ok
mkdir again: EEXIST
mkdir below an entry: EPERM
mkdir next to report: EPERM
file next to an entry: open EACCES
%sgeneration: "0\n"
provider: %q
outblob before inblob: read EINVAL
inblob of 32 bytes: ok
outblob after it: read EINVAL
generation: "1\n"
inblob of 65 bytes: EFBIG
inblob in two parts, by two descriptors: ok, ok
generation: "3\n"
inblob of 64 bytes: ok
outblob: 1086 bytes
outblob again: 1086 bytes
inblob is read: open EACCES
outblob is written: open EACCES
provider is written: open EACCES
first half: 100 bytes, ok
inblob meanwhile: ok
second half of the old one: true, ok
a new one then: true
file is removed: EPERM
rmdir: ok
rmdir again: ENOENT
rmdir of report: EPERM
`

const filesSNP = `file auxblob: mode 444, size 0
file generation: mode 444, size 4096
file inblob: mode 200, size 0
file outblob: mode 444, size 0
file privlevel: mode 200, size 4096
file privlevel_floor: mode 444, size 4096
file provider: mode 444, size 4096
`

const filesTDX = `file generation: mode 444, size 4096
file inblob: mode 200, size 0
file outblob: mode 444, size 0
file provider: mode 444, size 4096
`

func TestConfigfsTSM(t *testing.T) {
	for technology, want := range map[string]string{
		snpGuest: fmt.Sprintf(kernels, filesSNP, "sev_guest\n"),
		tdxGuest: fmt.Sprintf(kernels, filesTDX, "tdx_guest\n"),
	} {
		dir := mountHere(t, newTSM(newTestPlatform(t, &host{technology: technology})))
		if got := strings.Join(tsmprobe.Probe(dir+"/tsm/report"), "\n") + "\n"; got != want {
			t.Errorf("%s:\n%s\nwant\n%s", technology, got, want)
		}
	}
	dir := mountHere(t, newTSM(newTestPlatform(t, &host{technology: snpGuest})))
	got := strings.Join(tsmprobe.Levels(dir+"/tsm/report"), "\n") + "\n"
	want := `auxblob before inblob: read EINVAL
privlevel_floor: "0\n"
privlevel "1": ok
privlevel "3\n": ok
privlevel "4": EINVAL
privlevel "9": EINVAL
privlevel "-1": EINVAL
privlevel "x": EINVAL
privlevel is read: open EACCES
generation: "2\n"
inblob of 64 bytes: ok
generation: "3\n"
`
	if got != want {
		t.Errorf("levels:\n%s\nwant\n%s", got, want)
	}
}

// TestReportsOfAnEntry: one report for each generation, which has the data and the level.
func TestReportsOfAnEntry(t *testing.T) {
	h := &host{technology: snpGuest}
	tr := newTSM(newTestPlatform(t, h))
	node, errno := tr.mkdir(nodeReport, "a")
	if errno != 0 {
		t.Fatal(errno)
	}
	file := func(name string, flags uint32) handle {
		n, ok := tr.lookup(node, name)
		if !ok {
			t.Fatal(name)
		}
		f, errno := tr.open(n, flags)
		if errno != 0 {
			t.Fatal(name, errno)
		}
		return f
	}
	ask := func(data byte) {
		in := file("inblob", unix.O_WRONLY)
		for i := range maxInblob { // in parts
			if errno := in.write(uint64(i), []byte{data}); errno != 0 {
				t.Fatal(errno)
			}
		}
		in.flush()
	}
	out := func() string {
		b, errno := file("outblob", 0).read(t.Context())
		if errno != 0 {
			t.Fatal(errno)
		}
		return string(b[:64+24])
	}
	ask(5)
	first := out()
	if want := strings.Repeat("\x05", 64) + "vmpl 0, request      1"; !strings.HasPrefix(first, want) {
		t.Errorf("report %q, want %q", first, want)
	}
	if again := out(); again != first || h.asked != 1 {
		t.Errorf("a second report of the same generation: %q after %d requests", again, h.asked)
	}
	if errno := file("privlevel", unix.O_WRONLY).write(0, []byte("2\n")); errno != 0 {
		t.Fatal(errno)
	}
	if next := out(); !strings.Contains(next, "vmpl 2, request      2") {
		t.Errorf("another level: %q", next)
	}
	if errno := file("inblob", unix.O_WRONLY).write(60, make([]byte, 5)); errno != unix.EFBIG {
		t.Errorf("beyond the end: %v", errno)
	}
}

// TestPlatformFails as those of silicon do, and the driver with it.
func TestPlatformFails(t *testing.T) {
	busy, refused := port.Answer{Status: unix.EAGAIN}, port.Answer{Status: unix.EIO, Firmware: 0x16}
	for name, c := range map[string]struct {
		technology string
		fail       []port.Answer
		want, then unix.Errno
	}{
		"throttled twice":          {snpGuest, []port.Answer{busy, busy}, 0, 0},
		"throttled for a minute":   {snpGuest, slices.Repeat([]port.Answer{busy}, 31), unix.ETIMEDOUT, unix.ENOTTY},
		"message refused":          {snpGuest, []port.Answer{refused}, unix.EIO, unix.ENOTTY},
		"error of the host's":      {snpGuest, []port.Answer{{Status: unix.EIO}}, unix.EIO, 0},
		"a call that fails":        {tdxGuest, []port.Answer{{Status: unix.EIO}}, unix.EIO, 0},
		"firmware of TDX, unknown": {tdxGuest, []port.Answer{{Status: unix.EIO, Firmware: 1}}, unix.EIO, 0},
	} {
		h := &host{technology: c.technology, fail: c.fail}
		p := newTestPlatform(t, h)
		if _, f := p.report(t.Context(), [64]byte{}, 0); f.errno != c.want {
			t.Errorf("%s: %v, want %v", name, f.errno, c.want)
		}
		if _, f := p.report(t.Context(), [64]byte{}, 0); f.errno != c.then {
			t.Errorf("%s, and then: %v, want %v", name, f.errno, c.then)
		}
	}
	p := newTestPlatform(t, &host{technology: snpGuest, fail: []port.Answer{busy}})
	p.wait = sleep
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, f := p.report(ctx, [64]byte{}, 0); f.errno != unix.EINTR {
		t.Errorf("interrupted while it is throttled: %v", f.errno)
	}
}

// TestQuotesThatAreLate: the driver gives up after half a minute, or at a signal, and has one
// buffer.
func TestQuotesThatAreLate(t *testing.T) {
	h := &host{technology: tdxGuest, release: make(chan struct{})}
	p := newTestPlatform(t, h)
	p.wait = func(_ context.Context, d time.Duration) error {
		if d != 30*time.Second {
			t.Errorf("it waits %v", d)
		}
		return nil
	}
	if _, f := p.report(t.Context(), [64]byte{}, 0); f.errno != unix.ETIMEDOUT {
		t.Errorf("a quote that is late: %v", f.errno)
	}
	if _, f := p.report(t.Context(), [64]byte{}, 0); f.errno != unix.EBUSY {
		t.Errorf("while it is in flight: %v", f.errno)
	}
	close(h.release)
	p.wait = sleep
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		_, f := p.report(t.Context(), [64]byte{}, 0)
		if f.errno == 0 {
			break
		}
		if f.errno != unix.EBUSY || time.Now().After(deadline) {
			t.Fatalf("after it has come: %v", f.errno)
		}
	}
	h.release = make(chan struct{})
	defer close(h.release)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, f := p.report(ctx, [64]byte{}, 0); f.errno != unix.EINTR {
		t.Errorf("a signal: %v", f.errno)
	}
}

// TestResponses: the request succeeds, whatever status the firmware answers.
func TestResponses(t *testing.T) {
	h := &host{technology: snpGuest, fail: []port.Answer{{Firmware: 0x27}, {Firmware: 0x16}}}
	tr := newTSM(newTestPlatform(t, h))
	e := &tsmEntry{in: make([]byte, 64)}
	for _, want := range []unix.Errno{unix.ENXIO, unix.EINVAL, 0} {
		if errno := e.fetch(t.Context(), tr.p); errno != want {
			t.Errorf("%v, want %v", errno, want)
		}
	}
}

// TestPlatformGoes: a guest whose platform has gone gets errors.
func TestPlatformGoes(t *testing.T) {
	guest, hostEnd := net.Pipe()
	go func() { _ = port.Serve(hostEnd, (&host{technology: tdxGuest}).answer) }()
	p, err := newPlatform(guest)
	if err != nil {
		t.Fatal(err)
	}
	_ = guest.Close()
	if _, f := p.report(t.Context(), [64]byte{}, 0); f.errno != unix.EIO {
		t.Errorf("report: %v", f.errno)
	}
	if _, errno := p.registers(); errno != unix.EIO {
		t.Errorf("registers: %v", errno)
	}
	if errno := p.extend(3, [48]byte{}); errno != unix.EIO {
		t.Errorf("extend: %v", errno)
	}
}

func TestRegisters(t *testing.T) {
	h := &host{technology: tdxGuest}
	dir := mountHere(t, &registerTree{newTestPlatform(t, h)}) + "/tdx_guest/measurements/"
	write := func(name string, b []byte) error {
		fd, err := unix.Open(dir+name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		_, err = unix.Write(fd, b)
		_ = unix.Close(fd)
		return err
	}
	digest := bytes.Repeat([]byte{9}, 48)
	for _, c := range []struct {
		name string
		b    []byte
		want error
	}{
		{"rtmr3:sha384", digest[:47], unix.EINVAL},
		{"rtmr3:sha384", append(digest, 1), unix.EINVAL},
		{"mrtd:sha384", digest, unix.EACCES},
		{"mrowner", digest, unix.EACCES},
		{"rtmr4:sha384", digest, unix.ENOENT},
		{"rtmr0:sha384", digest, nil},
		{"rtmr3:sha384", digest, nil},
	} {
		if err := write(c.name, c.b); err != c.want {
			t.Errorf("%s, %d bytes: %v, want %v", c.name, len(c.b), err, c.want)
		}
	}
	fd, err := unix.Open(dir+"rtmr3:sha384", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	got := make([]byte, 100)
	if n, err := unix.Read(fd, got); err != nil || !bytes.Equal(got[:n], digest) {
		t.Errorf("RTMR3 is %x, %v", got[:n], err)
	}
}

// FuzzRequests: whatever comes, no request is answered with more than it may, or crashes.
func FuzzRequests(f *testing.F) {
	f.Add(uint32(opMkdir), uint64(nodeReport), []byte("\xff\x01\x00\x00\x00\x00\x00\x00a\x00"))
	f.Add(uint32(opWrite), uint64(256+3), make([]byte, 48))
	f.Add(uint32(opIoctl), uint64(1), ioctlRound(snpGetExtReport, make([]byte, sizeRequest+sizeExtReq), 0))
	f.Fuzz(func(t *testing.T, op uint32, node uint64, body []byte) {
		tr := newTSM(newTestPlatform(t, &host{technology: snpGuest}))
		_, _ = tr.mkdir(nodeReport, "a")
		m := &mounted{tree: tr, handles: map[uint64]handle{}}
		for _, file := range tr.list(firstEntry) {
			_, _ = m.answer(
				t.Context(),
				message{op: opOpen, node: file.node, body: append([]byte{1}, make([]byte, 7)...)},
			)
		}
		r := message{op: op, node: node, body: body}
		if out, _ := m.answer(t.Context(), r); len(out) > maxWrite {
			t.Errorf("%d bytes", len(out))
		}
		if out, _ := (&device{tr.p}).answer(t.Context(), r); len(out) > 16+sizeRequest+sizeReportRsp+maxCerts {
			t.Errorf("%d bytes", len(out))
		}
	})
}

// TestShortRequests: the kernel sends nothing of the kind, and a file system must not crash.
func TestShortRequests(t *testing.T) {
	m := &mounted{tree: newTSM(newTestPlatform(t, &host{technology: snpGuest})), handles: map[uint64]handle{}}
	d := &device{newTestPlatform(t, &host{technology: snpGuest})}
	for op := range uint32(60) {
		for n := range 70 {
			r := message{op: op, node: uint64(n), body: make([]byte, n)}
			_, _ = m.answer(t.Context(), r)
			_, _ = d.answer(t.Context(), r)
		}
	}
}

func TestUpWithoutAPort(t *testing.T) {
	log := t.TempDir() + "/log"
	if _, err := Up(Options{Port: log + "-port", Log: log}); !os.IsNotExist(err) {
		t.Errorf("%v, want that there is no such device", err)
	}
}
