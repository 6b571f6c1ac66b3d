package under

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/cpuid"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/firmware/swtee/internal/cmdline"
	"github.com/vmlatch/vmlatch/firmware/swtee/internal/trap"
)

// Options say what to run and how.
type Options struct {
	Argv []string // QEMU and its arguments
	// Firmware returns the firmware that answers. It is called after QEMU has been
	// started, so that neither waits for the other; if it fails, QEMU is ended.
	Firmware func() (*swtee.Firmware, error)
	FakeKVM  bool // answer for /dev/kvm too
	// Places tracks where guest memory is even if only reports and logs need that.
	Places bool
	// Record, if set, keeps what the launch submits. It implies Places.
	Record *Record
	// OwnGroup keeps a terminal's signals from QEMU.
	OwnGroup bool
	// Started, if set, is called with QEMU's process once it runs.
	Started func(pid int)
	Stdin   *os.File
	Stdout  *os.File
	Stderr  *os.File
	Logger  *slog.Logger // what is emulated and when; may be nil

	// For tests: kernels and processors with fewer features, and hooks for what happens
	// while a thread is attached.
	interruptible   bool
	noCPUIDFaulting bool
	attached        func(pid int)
}

// ErrDaemonize is why -daemonize is refused.
var ErrDaemonize = errors.New("-daemonize: QEMU would go on without swtee, which answers for its platform; " +
	"run swtee in the background instead")

// Why options are refused.
var (
	ErrReadConfig = errors.New("-readconfig: swtee looks for confidential objects on the command line only; " +
		"write them there")
	ErrUser = errors.New("-runas and -run-with user=: the kernel would let QEMU live on without swtee " +
		"once it has changed its user; run swtee as that user")
)

// refuse looks for options that cannot work.
func refuse(args []string) error {
	for i, a := range args {
		if !strings.HasPrefix(a, "-") {
			continue
		}
		switch strings.TrimLeft(a, "-") {
		case "daemonize":
			return ErrDaemonize
		case "readconfig":
			return ErrReadConfig
		case "runas":
			return ErrUser
		case "run-with":
			if i+1 < len(args) && cmdline.Split(args[i+1]).Get("user") != "" {
				return ErrUser
			}
		}
	}
	return nil
}

// grace is how long QEMU may take to end after it was asked to.
const grace = 10 * time.Second

// Run runs QEMU until it ends and returns its exit code, 128 and the signal's
// number if a signal ended it. QEMU dies when this process does. When ctx ends,
// QEMU is asked to end (SIGTERM).
func Run(ctx context.Context, opt Options) (int, error) {
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if len(opt.Argv) == 0 {
		return 2, errors.New("no QEMU command line given")
	}
	if err := refuse(opt.Argv[1:]); err != nil {
		return 2, err
	}
	path, err := exec.LookPath(opt.Argv[0])
	if err != nil {
		return 127, err
	}
	s := newSupervisor(opt)
	args := opt.Argv
	if s.confidential = hasSEVObject(args); s.confidential && !s.trapsCPUID {
		args = s.withHostCBit(args)
	}
	p, err := trap.Start(trap.Options{
		Path: path, Args: args, Filter: filterFor(args, opt.FakeKVM, opt.Places || opt.Record != nil),
		Interruptible: opt.interruptible, OwnGroup: opt.OwnGroup,
		Files: []*os.File{opt.Stdin, opt.Stdout, opt.Stderr},
	})
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EACCES) {
			return 127, err
		}
		return 1, err
	}
	if opt.Started != nil {
		opt.Started(p.PID)
	}
	if s.fw, err = opt.Firmware(); err != nil {
		_ = p.Signal(unix.SIGKILL)
		_, _ = p.Wait()
		return 1, err
	}
	p.Watch(s.fw.Stop) // a platform that is slow on purpose must not delay the end
	ended := make(chan struct{})
	defer close(ended)
	stop := context.AfterFunc(ctx, func() {
		_ = p.Signal(unix.SIGTERM)
		select {
		case <-time.After(grace):
			_ = p.Signal(unix.SIGKILL)
		case <-ended:
		}
	})
	defer stop()
	code, err := s.supervise(p)
	s.guestWipe()
	return code, err
}

// filterFor stops only the calls that a command line needs answers for: each one costs
// some 30 microseconds.
func filterFor(argv []string, fakeKVM, places bool) trap.Filter {
	f := trap.Filter{OpenReadWrite: true, Ioctls: trap.Requests(platformRequests...), Succeed: idleRequests}
	if fakeKVM {
		f.Ioctls, f.IoctlTypes = trap.Requests(sevIssueCmd), []byte{kvmType}
		return f
	}
	objects := sevObjects(argv)
	if len(objects) > 0 {
		f.Ioctls = append(f.Ioctls, trap.Requests(guestRequests...)...)
		for _, c := range slices.Sorted(maps.Keys(capabilities)) {
			f.Ioctls = append(f.Ioctls, trap.Ioctl{Request: kvmCheckExtension, Arg: c, WithArg: true})
		}
	}
	if places || slices.ContainsFunc(objects, func(o cmdline.Object) bool { return o.Type != "sev-guest" }) {
		f.Ioctls = append(f.Ioctls, trap.Requests(memoryRequests...)...)
	}
	if slices.ContainsFunc(objects, measuresRegisters) {
		f.Ioctls = append(f.Ioctls, trap.Requests(registerRequests...)...)
	}
	return f
}

// measuresRegisters reports whether an object's launch covers register state.
func measuresRegisters(o cmdline.Object) bool {
	policy, err := strconv.ParseUint(o.Props["policy"], 0, 32)
	return o.Type == "sev-snp-guest" || o.Type == "sev-guest" && err == nil && sev.Policy(policy)&sev.PolicyES != 0
}

// supervise answers QEMU's calls until its end.
func (s *supervisor) supervise(p *trap.Process) (int, error) {
	s.tracer = p.NewTracer()
	if f := s.opt.attached; f != nil {
		s.tracer.Attached = func() { f(p.PID) }
	}
	s.tracer.Failed = func(err error) {
		s.log.Warn("QEMU will see this host's own CPUID", "err", err)
	}
	serveErr := p.Serve(s.handle)
	if serveErr != nil {
		_ = p.Signal(unix.SIGKILL) // its calls would no longer be answered
	}
	s.tracer.Stop()
	status, err := p.Wait()
	switch {
	case serveErr != nil:
		return 1, serveErr
	case err != nil:
		return 1, fmt.Errorf("wait for QEMU: %w", err)
	case status.Signaled():
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// hasSEVObject reports whether the machine of a command line uses an object for which
// QEMU asks the processor where its encryption bit is.
func hasSEVObject(argv []string) bool {
	used := map[string]bool{}
	for i, a := range argv[:len(argv)-1] {
		if name := strings.TrimLeft(a, "-"); a != name && (name == "machine" || name == "M") {
			es := cmdline.Split(argv[i+1])
			used[es.Get("confidential-guest-support")], used[es.Get("memory-encryption")] = true, true
		}
	}
	isSEV := func(o cmdline.Object) bool { return o.Type != "tdx-guest" && used[o.Props["id"]] }
	return slices.ContainsFunc(sevObjects(argv), isSEV)
}

func isObjectOption(argv []string, i int) bool {
	return (argv[i] == "-object" || argv[i] == "--object") && i+1 < len(argv)
}

func sevObjects(argv []string) []cmdline.Object {
	var found []cmdline.Object
	for i := range argv {
		if !isObjectOption(argv, i) {
			continue
		}
		o, err := cmdline.ParseObject(argv[i+1])
		switch {
		case err != nil: // QEMU will say so
		case o.Type == "sev-guest", o.Type == "sev-snp-guest", o.Type == "tdx-guest":
			found = append(found, o)
		}
	}
	return found
}

// withHostCBit changes cbitpos to what this host's CPUID reports. It is for processors
// that cannot trap CPUID: QEMU compares the two.
func (s *supervisor) withHostCBit(argv []string) []string {
	_, b, _, _ := cpuid.Ask(leafMemoryEncryption, 0)
	s.cbit = b & 0x3f
	out := append([]string(nil), argv...)
	for i := range out {
		if !isObjectOption(out, i) || !strings.Contains(out[i+1], "sev-") {
			continue
		}
		changed, err := cmdline.SetObjectProperty(out[i+1], "cbitpos", s.cbit)
		if err != nil {
			continue
		}
		level := slog.LevelWarn
		if s.kvm != nil { // the guest does not run here
			level = slog.LevelInfo
		}
		s.log.Log(context.Background(), level,
			"this processor cannot trap CPUID: cbitpos becomes the processor's own, with which QEMU compares it",
			"cbitpos", s.cbit)
		out[i+1] = changed
	}
	return out
}

// ErrListenerTaken means that another supervisor watches this process already.
var ErrListenerTaken = trap.ErrListenerTaken

// Confidential reports whether a command line has an object for a confidential guest.
func Confidential(argv []string) bool { return len(sevObjects(argv)) > 0 }
