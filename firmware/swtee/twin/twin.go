package twin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/bzimage"
	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/firmware/swtee/internal/front"
	"github.com/vmlatch/vmlatch/qmp"
)

// Options say what to run and how.
type Options struct {
	Argv []string // QEMU and its arguments
	// Firmware returns the firmware that answers; it is called once QEMU has been started.
	Firmware func() (*swtee.Firmware, error)
	// Measure has values of options that only the launch gets, like a host that lies: QEMU's
	// options by name, without the dash. The guest, or whoever judges its evidence, must notice.
	Measure map[string]string
	// TwinQEMU is the program that runs the guest; "" for the one that launches it.
	TwinQEMU string
	// Say, if set, prints what the user must be told whatever the log level.
	Say func(text string)
	// AnyKernel takes kernels that cannot be a guest's of SEV-SNP or TDX on silicon.
	AnyKernel bool
	// Profile is how the firmware measures into RTMR1 and RTMR2; "" for the newest known.
	Profile string
	Stdin   *os.File
	Stdout  *os.File
	Stderr  *os.File
	Logger  *slog.Logger // what is emulated and when; may be nil
}

// machine is one guest: the oracle, and the twin in which it runs.
type machine struct {
	opt    *Options
	log    *slog.Logger
	lines  *lines
	oracle *oracle
	qemu   *front.QEMU
	boot   *boot // with TDX

	mu       sync.Mutex // of the launch; one command at a time
	launched bool
	failed   error // why the launch failed
	lost     bool  // the twin had ended before
}

// ErrUsage is among errors about the command line.
var ErrUsage = errors.New("command line")

// usageError is an error about the command line.
type usageError struct{ error }

func (usageError) Is(target error) bool { return target == ErrUsage }
func (e usageError) Unwrap() error      { return e.error }

// Run launches a guest and runs it until it ends, and returns QEMU's exit code: the twin's, or the
// oracle's if the launch failed. Both die when the calling process does. The caller must not use
// the calling goroutine's thread otherwise; Run locks it.
func Run(ctx context.Context, opt Options) (int, error) {
	runtime.LockOSThread() // the kernel ties PDEATHSIG to the thread that forks
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	fs := &files{}
	defer fs.close()
	l, err := split(opt.Argv, opt.Measure, fs)
	if err == nil {
		err = l.check(opt.AnyKernel)
	}
	if err != nil {
		return 2, usageError{err}
	}
	if opt.Say == nil {
		opt.Say = func(string) {}
	}
	t := &machine{opt: &opt, log: opt.Logger, lines: l}
	if l.bound {
		if t.boot, err = newBoot(l, opt.Profile); err != nil {
			return 2, usageError{err}
		}
	}
	for _, n := range l.notes {
		opt.Logger.Info(n)
	}
	if opt.TwinQEMU != "" {
		opt.Say("the guest is launched by " + l.program + ", and runs in " + opt.TwinQEMU)
	}
	if t.boot != nil {
		opt.Say("RTMR1 and RTMR2 are measured by swtee, as firmware of profile " + t.boot.profile.Name +
			" would: they say what was served, not what ran; RTMR0 is zero")
	}
	code, err := t.run(ctx)
	var ended *errOracle
	if errors.As(err, &ended) {
		if ended.err == nil { // QEMU has said why
			ended.err = tooOld(l)
		}
		return ended.code, ended.err
	}
	return code, err
}

// since are the versions of QEMU that brought objects.
var since = map[string]struct{ major, minor int }{"sev-snp-guest": {9, 1}, "tdx-guest": {10, 1}}

// tooOld says if a QEMU that has ended is older than the object of the guest, which it does not
// say.
func tooOld(l *lines) error {
	need, ok := since[l.object.Type]
	if !ok {
		return nil
	}
	out, err := exec.Command(l.program, "--version").Output()
	_, version, found := strings.Cut(string(out), "version ")
	if newer, known := bzimage.AtLeast(version, need.major, need.minor); err != nil || !found || newer || !known {
		return nil
	}
	return fmt.Errorf("%s needs QEMU %d.%d or newer, and this is %s", l.object.Type, need.major, need.minor,
		strings.Fields(version)[0])
}

func (t *machine) run(ctx context.Context) (int, error) {
	var err error
	if t.oracle, err = startOracle(ctx, t.opt, t.lines); err != nil {
		return 1, err
	}
	defer t.oracle.end()
	go t.makeKeys()
	port, err := t.addPort()
	if err != nil {
		return 1, err
	}
	t.qemu, err = front.Start(ctx, front.Options{
		Program: cmp.Or(t.opt.TwinQEMU, t.lines.program), Args: t.lines.twin,
		Stdin: t.opt.Stdin, Stdout: t.opt.Stdout, Stderr: t.opt.Stderr,
	})
	port.child()
	defer port.own.Close()
	switch {
	case errors.Is(err, front.ErrStart):
		return 127, err
	case errors.Is(err, front.ErrMonitor):
		return 2, err
	case err != nil:
		return 1, err
	}
	stop := t.watchOracle()
	defer stop()
	failed := t.serve(ctx, port.own)
	if failed != nil && !errors.Is(failed, qmp.ErrClosed) {
		t.qemu.Kill()
	} else {
		failed = nil // it has said why it ended
	}
	code, err := t.qemu.Wait()
	t.oracle.stop() // a launch that goes on is of no use any more
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.failed != nil && !t.lost:
		return 1, t.failed
	case failed != nil:
		return 1, failed
	}
	return code, err
}

// makeKeys makes the keys that sign evidence while the guest boots, as they are needed only when it
// asks: for SEV-SNP they take seconds, once for each platform.
func (t *machine) makeKeys() {
	fw, err := t.opt.Firmware()
	if err != nil {
		return // said elsewhere
	}
	switch t.lines.object.Type {
	case "sev-snp-guest":
		_, err = fw.AMD()
	case "tdx-guest":
		_, err = fw.Intel()
	}
	if err != nil {
		t.log.Warn("the guest will get no evidence", "err", err)
	}
}

// serve answers the clients, and the guest.
func (t *machine) serve(ctx context.Context, port net.Conn) error {
	if err := t.qemu.Connect(ctx); err != nil {
		return err
	}
	go t.servePort(port)
	t.qemu.Serve(t.handle)
	if t.lines.paused {
		return nil
	}
	switch err := t.cont(ctx); {
	case errors.Is(err, front.HangUp): // run says why
		return nil
	case err != front.Pass:
		return err
	}
	return qmp.Cont{}.Execute(ctx, t.qemu.Monitors[0])
}

// errGone: the oracle ended while the guest ran.
var errGone = errors.New("the platform has gone: the QEMU that launched the guest has ended")

// watchOracle ends the twin when the oracle ends.
func (t *machine) watchOracle() (stop func()) {
	done := make(chan struct{})
	go func() {
		select {
		case <-done:
		case <-t.oracle.ended:
			t.mu.Lock()
			defer t.mu.Unlock()
			if t.failed == nil && !t.qemu.Ended() {
				t.failed = errGone
				if !t.launched {
					t.failed = t.oracle.ending(errGone)
				}
			}
			t.qemu.Kill()
		}
	}()
	return sync.OnceFunc(func() { close(done) })
}

// cont finishes the launch before the guest first runs. It returns front.Pass if the twin may go
// on.
func (t *machine) cont(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.failed != nil:
		return front.HangUp
	case t.launched:
		return front.Pass
	}
	// Something may be wrong with the twin's devices: then nothing is launched.
	if err := t.qemu.Monitors[0].Execute(ctx, "query-status", nil, nil); err != nil {
		return err
	}
	if err := (qmp.Cont{}).Execute(ctx, t.oracle.conn); err != nil {
		var refused *qmp.Error
		if errors.As(err, &refused) && refused.Class != "" {
			return err
		}
		return t.fail(t.oracle.failed(err))
	}
	if err := t.load(); err != nil {
		return t.fail(err)
	}
	if err := t.measureBoot(); err != nil {
		return t.fail(err)
	}
	// Its guest would run, and cannot.
	if err := t.oracle.conn.Execute(ctx, "stop", nil, nil); err != nil {
		return t.fail(t.oracle.failed(err))
	}
	t.launched = true
	return front.Pass
}

// fail ends the guest: no client is answered any more.
func (t *machine) fail(err error) error {
	t.failed, t.lost = err, t.qemu.Ended()
	t.qemu.HangUp()
	t.qemu.Kill()
	return front.HangUp
}

// addPort adds the guest's port to the platform.
func (t *machine) addPort() (*ends, error) {
	own, theirs, err := front.Socketpair()
	if err != nil {
		return nil, err
	}
	t.lines.addPort(theirs)
	return &ends{own: own, child: func() { _ = unix.Close(theirs) }}, nil
}

// ends are those of the connection of a guest to its platform.
type ends struct {
	own   net.Conn
	child func() // closes the twin's end here
}
