//go:build !quick

package under

import (
	"bytes"
	"context"
	"encoding/hex"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/qmp"
)

func top() string {
	_, self, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(self), "../../..")
}

func guestFile(t testing.TB, name string) string {
	t.Helper()
	file := filepath.Join(top(), ".cache/guest", name)
	if _, err := os.Stat(file); err != nil {
		t.Skipf("%v: run make setup", err)
	}
	return file
}

var sharedPlatform = sync.OnceValues(func() (*swtee.Platform, error) {
	dir, err := os.MkdirTemp("", "swtee-test-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	return swtee.OpenPlatform(dir)
})

func platform(t testing.TB) *swtee.Platform {
	t.Helper()
	p, err := sharedPlatform()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// lockedBuffer collects the output of several writers.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// run is a QEMU under test.
type run struct {
	t      testing.TB
	fw     *swtee.Firmware
	conn   *qmp.Conn // nil if QEMU ended before it answered
	stderr *os.File
	log    *lockedBuffer
	cancel context.CancelFunc
	done   chan struct{}
	code   int
	err    error
}

// base are the arguments that every machine here has.
var base = []string{
	"-m", "64", "-nodefaults", "-no-user-config", "-display", "none", "-S", "-accel", "kvm",
}

// options of a test run.
type options struct {
	under  Options
	faults []string
	args   []string
}

// start runs QEMU with a monitor on an inherited socket.
func start(t testing.TB, qemu string, o options) *run {
	t.Helper()
	var faults []swtee.Fault
	for _, text := range o.faults {
		f, err := swtee.ParseFault(text)
		if err != nil {
			t.Fatal(err)
		}
		faults = append(faults, f)
	}
	r := &run{t: t, fw: swtee.NewFirmware(platform(t), faults...), done: make(chan struct{}), log: &lockedBuffer{}}
	r.fw.RecordPages = true
	var err error
	if r.stderr, err = os.Create(filepath.Join(t.TempDir(), "stderr")); err != nil {
		t.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.CloseOnExec(fds[0])
	ours := os.NewFile(uintptr(fds[0]), "monitor")
	nc, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	ours.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	opt := o.under
	monitor := []string{"-chardev", "socket,id=m,fd=" + strconv.Itoa(fds[1]), "-mon", "chardev=m,mode=control"}
	opt.Argv = slices.Concat([]string{qemu}, monitor, base, o.args)
	opt.Firmware = func() (*swtee.Firmware, error) { return r.fw, nil }
	opt.Stdin, opt.Stdout, opt.Stderr = null, r.stderr, r.stderr
	opt.Logger = slog.New(slog.NewTextHandler(r.log, nil))
	next := opt.Started
	opt.Started = func(pid int) { // QEMU has its copy now
		unix.Close(fds[1])
		if next != nil {
			next(pid)
		}
	}
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(context.Background())
	go func() {
		defer close(r.done)
		r.code, r.err = Run(ctx, opt)
		null.Close()
	}()
	t.Cleanup(func() {
		r.cancel()
		r.wait()
		if r.conn != nil {
			r.conn.Close()
		}
		if t.Failed() {
			t.Logf("QEMU said:\n%s\nswtee said:\n%s", r.said(), r.log)
		}
		r.stderr.Close()
	})
	cctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	go func() { // a QEMU that ends early answers nothing
		select {
		case <-r.done:
			nc.Close()
		case <-cctx.Done():
		}
	}()
	if r.conn, err = qmp.NewConn(cctx, nc, qmp.Options{}); err != nil {
		r.conn = nil
		r.wait()
	}
	return r
}

func (r *run) wait() {
	select {
	case <-r.done:
	case <-time.After(60 * time.Second):
		panic("QEMU does not end:\n" + r.said() + r.log.String())
	}
}

// said is what QEMU wrote.
func (r *run) said() string {
	b, _ := os.ReadFile(r.stderr.Name())
	return string(b)
}

// up fails the test unless QEMU answers.
func (r *run) up() *run {
	r.t.Helper()
	if r.conn == nil {
		r.t.Fatalf("QEMU ended with code %d (%v)", r.code, r.err)
	}
	return r
}

// quit ends QEMU and expects it to succeed.
func (r *run) quit() {
	r.t.Helper()
	_ = r.conn.Execute(r.ctx(), "quit", nil, nil)
	r.wait()
	if r.code != 0 || r.err != nil {
		r.t.Errorf("QEMU ended with code %d, %v; want 0", r.code, r.err)
	}
}

func (r *run) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	r.t.Cleanup(cancel)
	return ctx
}

func (r *run) execute(command string, args, ret any) {
	r.t.Helper()
	if err := r.conn.Execute(r.ctx(), command, args, ret); err != nil {
		r.t.Fatalf("%s: %v", command, err)
	}
}

// report is a copy of what the firmware was told.
func (r *run) report() swtee.Report {
	var rep swtee.Report
	r.fw.WithReport(func(p *swtee.Report) {
		rep = *p
		rep.Commands, rep.Pages = slices.Clone(p.Commands), slices.Clone(p.Pages)
		if p.Launch != nil {
			l := *p.Launch
			rep.Launch = &l
		}
	})
	return rep
}

func (r *run) digest() string {
	if l := r.report().Launch; l != nil {
		return l.Digest
	}
	return ""
}

// memory reads guest memory through QEMU.
func (r *run) memory(gpa uint64, n int) []byte {
	r.t.Helper()
	file := filepath.Join(r.t.TempDir(), "memory")
	r.execute("pmemsave", map[string]any{"val": gpa, "size": n, "filename": file}, nil)
	b, err := os.ReadFile(file)
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

func sevArgs(firmware string, props ...string) []string {
	return []string{
		"-machine", "q35,confidential-guest-support=cgs0", "-bios", firmware,
		"-object", strings.Join(append([]string{"sev-guest,id=cgs0,cbitpos=51,reduced-phys-bits=1"}, props...), ","),
	}
}

func tdxArgs(firmware string, props ...string) []string {
	return []string{
		"-machine", "q35,confidential-guest-support=cgs0,kernel-irqchip=split", "-bios", firmware, "-cpu", "host",
		"-object", strings.Join(append([]string{"tdx-guest,id=cgs0"}, props...), ","),
	}
}

func fake(o Options) Options { o.FakeKVM = true; return o }

// startFake runs QEMU on a fake KVM.
func startFake(t testing.TB, qemu string, args []string, faults ...string) *run {
	t.Helper()
	return start(t, qemu, options{under: fake(Options{}), args: args, faults: faults})
}

func hexString(b []byte) string { return hex.EncodeToString(b) }
