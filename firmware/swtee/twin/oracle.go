package twin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/swtee/internal/front"
	"github.com/vmlatch/vmlatch/firmware/swtee/under"
	"github.com/vmlatch/vmlatch/qmp"
)

// oracle is the QEMU whose own code launches the guest.
type oracle struct {
	conn   *qmp.Conn
	record *under.Record
	ended  chan struct{} // closed once code and err are set
	code   int
	err    error
	cancel context.CancelFunc
	kill   func()
}

// errOracle is why a QEMU did not come as far as it should have: it has said why, and code is its
// own.
type errOracle struct {
	code int
	err  error
}

func (e *errOracle) Error() string {
	if e.err != nil {
		return e.err.Error()
	}
	return fmt.Sprintf("QEMU ended with code %d before the guest was launched", e.code)
}

func (e *errOracle) Unwrap() error { return e.err }

// startOracle starts it, and returns once its machine is built and waits.
func startOracle(ctx context.Context, opt *Options, l *lines) (*oracle, error) {
	own, theirs, err := front.Socketpair()
	if err != nil {
		return nil, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, errors.Join(err, own.Close(), unix.Close(theirs))
	}
	defer null.Close()
	argv := append([]string{l.program}, l.oracle...)
	argv = append(argv, "-chardev", fmt.Sprintf("socket,id=swtee,fd=%d", theirs), "-qmp", "chardev:swtee")
	o := &oracle{record: &under.Record{}, ended: make(chan struct{})}
	// It ends with the twin, whatever the twin needs to end. Until there is one it ends at once.
	whole, cancel := context.WithCancel(context.WithoutCancel(ctx))
	o.cancel = cancel
	defer context.AfterFunc(ctx, cancel)()
	started := make(chan struct{})
	// What the caller has given to QEMU for its devices is the twin's alone.
	theTwins := keepFrom(descriptors(opt.Argv))
	go func() {
		defer close(o.ended)
		o.code, o.err = under.Run(whole, under.Options{
			Argv: argv, Firmware: opt.Firmware, FakeKVM: true, Record: o.record, OwnGroup: true,
			Stdin: null, Stdout: opt.Stderr, Stderr: opt.Stderr, Logger: opt.Logger,
			Started: func(pid int) {
				if p, err := os.FindProcess(pid); err == nil {
					o.kill = func() { _ = p.Kill() }
				}
				close(started)
			},
		})
	}()
	select {
	case <-started:
	case <-o.ended:
	}
	err = errors.Join(unix.Close(theirs), theTwins())
	if err == nil {
		err = o.connect(ctx, own)
	}
	if err != nil {
		_ = own.Close()
		return nil, o.failed(err)
	}
	return o, nil
}

// connect waits until the machine is built.
func (o *oracle) connect(ctx context.Context, nc net.Conn) (err error) {
	if o.conn, err = qmp.NewConn(ctx, nc, qmp.Options{}); err != nil {
		return err
	}
	return o.conn.Execute(ctx, "query-status", nil, nil)
}

// failed ends the oracle after an error; how it ended counts for more.
func (o *oracle) failed(err error) error {
	if !errors.Is(err, qmp.ErrClosed) {
		o.end()
		if ended := o.err; ended != nil && !errors.Is(ended, context.Canceled) {
			return &errOracle{max(o.code, 1), ended}
		}
		return err
	}
	select {
	case <-o.ended:
	case <-time.After(grace): // its monitor has gone, and it lives
		o.end()
	}
	return o.ending(err)
}

// ending is how the oracle ended. After a signal QEMU has said nothing.
func (o *oracle) ending(err error) error {
	const signalled = 128
	switch {
	case o.err != nil:
		return &errOracle{max(o.code, 1), o.err}
	case o.code > signalled:
		return &errOracle{
			o.code,
			fmt.Errorf("the QEMU that launches the guest was ended by signal %d", o.code-signalled),
		}
	case o.code == 0:
		return &errOracle{1, err}
	}
	return &errOracle{o.code, nil}
}

// grace is how long QEMU may take to end.
const grace = 10 * time.Second

// end ends the oracle, and waits.
func (o *oracle) end() {
	o.stop()
	<-o.ended
}

func (o *oracle) stop() {
	o.cancel()
	if o.kill != nil {
		o.kill()
	}
}

// numbers finds descriptors in the value of an option: fd=3, fds=3:4, "fd":"3", vhostfd=5, the
// names of descriptors in /proc and /dev.
var numbers = regexp.MustCompile(`(?:[a-z]*fds?"?\s*[=:]\s*"?|/proc/self/fd/|/dev/fd/)([0-9]+(?::[0-9]+)*)`)

// descriptors are those that a command line names.
func descriptors(argv []string) (fds []int) {
	for _, arg := range argv {
		for _, m := range numbers.FindAllStringSubmatch(arg, -1) {
			for text := range strings.SplitSeq(m[1], ":") {
				if n, err := strconv.Atoi(text); err == nil && n > 2 {
					fds = append(fds, n)
				}
			}
		}
	}
	return fds
}

// keepFrom keeps descriptors from a program that is started next; the function that it returns
// lets the one after that have them.
func keepFrom(fds []int) (again func() error) {
	set := func(flag int) error {
		for _, fd := range fds {
			old, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
			if err != nil {
				continue // the caller names one that is not open: QEMU says so
			}
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, old&^unix.FD_CLOEXEC|flag); err != nil {
				return err
			}
		}
		return nil
	}
	err := set(unix.FD_CLOEXEC)
	return func() error { return errors.Join(err, set(0)) }
}
