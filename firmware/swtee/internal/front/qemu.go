package front

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/qmp"
	"github.com/vmlatch/vmlatch/qmp/qtest"
)

// Options say what to run.
type Options struct {
	Program string
	Args    *Args
	Stdin   *os.File
	Stdout  *os.File
	Stderr  *os.File
}

// QEMU is a running QEMU.
type QEMU struct {
	Test     *qtest.Conn
	Monitors []*qmp.Conn // once Connect has returned

	cmd     *exec.Cmd
	conns   []net.Conn // of the monitors
	clients []*endpoint
	stop    func() bool
	busy    sync.RWMutex  // held for reading while a command is being answered
	ended   chan struct{} // closed once QEMU has
}

// Errors of Start.
var (
	ErrStart   = errors.New("cannot start QEMU")
	ErrMonitor = errors.New("monitor")
)

// Start runs QEMU, paused if the arguments say so. It dies when the calling thread does, which the
// caller must have locked. When ctx ends, QEMU is asked to end.
func Start(ctx context.Context, opt Options) (_ *QEMU, err error) {
	q := &QEMU{ended: make(chan struct{})}
	defer func() {
		if err != nil {
			q.close()
		}
	}()
	a := opt.Args
	if q.clients, err = openMonitors(a.monitors); err != nil {
		return nil, err
	}
	monitors := a.monitors
	if len(monitors) == 0 {
		monitors = []monitor{{arg: len(a.list) + 1, rest: "socket,id=swtee"}}
		a.Add("-chardev", "", "-qmp", "chardev:swtee")
	}
	var theirs []int
	defer func() {
		for _, fd := range theirs {
			_ = unix.Close(fd)
		}
	}()
	pair := func() (net.Conn, error) {
		own, child, err := Socketpair()
		if err == nil {
			theirs = append(theirs, child)
		}
		return own, err
	}
	for i := range monitors {
		c, err := pair()
		if err != nil {
			return nil, err
		}
		q.conns = append(q.conns, c)
		a.socket(&monitors[i], theirs[i])
	}
	c, err := pair()
	if err != nil {
		return nil, err
	}
	q.Test = qtest.New(c)
	a.Add("-chardev", fmt.Sprintf("socket,id=qtest,fd=%d", theirs[len(theirs)-1]),
		"-qtest", "chardev:qtest", "-qtest-log", "none")

	q.cmd = exec.Command(opt.Program, a.list...)
	q.cmd.Stdin, q.cmd.Stdout, q.cmd.Stderr = opt.Stdin, opt.Stdout, opt.Stderr
	q.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := q.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStart, err)
	}
	q.stop = context.AfterFunc(ctx, func() {
		_ = q.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-time.After(grace):
			q.Kill()
		case <-q.ended:
		}
	})
	return q, nil
}

// grace is how long QEMU may take to end after it was asked to.
const grace = 10 * time.Second

// Connect negotiates with all monitors. It returns qmp.ErrClosed if QEMU ends.
func (q *QEMU) Connect(ctx context.Context) error {
	for _, nc := range q.conns {
		c, err := qmp.NewConn(ctx, nc, qmp.Options{})
		if err != nil {
			return err
		}
		q.Monitors = append(q.Monitors, c)
	}
	return nil
}

// Serve begins to answer clients.
func (q *QEMU) Serve(handle Handler) {
	for i, e := range q.clients {
		go e.serve(&server{handle: handle, up: q.Monitors[i], busy: &q.busy})
	}
}

// HangUp closes the connections of all clients; no further ones are taken.
func (q *QEMU) HangUp() {
	for _, e := range q.clients {
		e.close()
	}
}

// Ended reports whether QEMU has ended.
func (q *QEMU) Ended() bool {
	select {
	case <-q.ended:
		return true
	default:
		return false
	}
}

// Kill ends QEMU.
func (q *QEMU) Kill() { _ = q.cmd.Process.Kill() }

// Wait waits for QEMU's end and returns its exit code, 128 and the signal's number if a signal
// ended it.
func (q *QEMU) Wait() (int, error) {
	err := q.cmd.Wait()
	close(q.ended)
	q.stop()
	q.finish()
	q.close()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if s, ok := exit.Sys().(syscall.WaitStatus); ok && s.Signaled() {
			return 128 + int(s.Signal()), nil
		}
		return exit.ExitCode(), nil
	}
	return 0, err
}

// finish lets the last answers reach their clients, such as that to "quit".
func (q *QEMU) finish() {
	answered := make(chan struct{})
	go func() {
		q.busy.Lock()
		defer q.busy.Unlock()
		close(answered)
	}()
	const patience = time.Second // for a client that does not read
	select {
	case <-answered:
	case <-time.After(patience):
	}
}

func (q *QEMU) close() {
	q.HangUp()
	for _, c := range q.conns {
		_ = c.Close()
	}
	if q.Test != nil {
		_ = q.Test.Close()
	}
}

// Socketpair makes one end for this process and one that a program inherits.
func Socketpair() (net.Conn, int, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return nil, -1, err
	}
	unix.CloseOnExec(fds[0])
	f := os.NewFile(uintptr(fds[0]), "socketpair")
	defer f.Close()
	c, err := net.FileConn(f)
	return c, fds[1], err
}
