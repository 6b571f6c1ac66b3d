package trap

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Options say what to run.
type Options struct {
	Path   string // of the program
	Args   []string
	Files  []*os.File // standard input, output and error
	Filter Filter
	// Interruptible leaves out SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, as kernels
	// before 5.19 do: any signal then interrupts a call while it is answered.
	Interruptible bool
	// OwnGroup starts the program in a process group of its own, which a terminal's signals do
	// not reach.
	OwnGroup bool
}

// Process is a running program with its filter.
type Process struct {
	PID int

	process  *os.Process
	listener int
	pidfd    int
	killable bool
	ended    chan struct{}

	open sync.RWMutex // guards the descriptors
	mu   sync.Mutex
	lost map[int]lostAnswer // by thread
}

// lostAnswer is the answer to a call that a signal interrupted: the kernel will
// make the call again, and it must not take place twice.
type lostAnswer struct {
	nr      int
	ip      uint64
	args    [6]uint64
	watched []span
	memory  []byte
	answer  func(*Call)
}

// ErrListenerTaken means that another supervisor already watches this process.
var ErrListenerTaken = errors.New("another program already watches the system calls of this process by seccomp, " +
	"and a process can have one such watcher: a container runtime, or a second swtee around this one")

// Start runs a program under a filter. Its calls wait until Serve runs.
func Start(opt Options) (*Process, error) {
	p := &Process{ended: make(chan struct{}), lost: map[int]lostAnswer{}, listener: -1, pidfd: -1}
	started := make(chan error)
	go func() {
		// The thread has the filter for good and is never unlocked: it ends with
		// this goroutine. It must live as long as the program, which dies with it.
		runtime.LockOSThread()
		err := p.start(opt)
		started <- err
		if err == nil {
			<-p.ended
		}
	}()
	if err := <-started; err != nil {
		p.close()
		return nil, err
	}
	if err := p.checkAccess(); err != nil {
		_ = p.Signal(unix.SIGKILL)
		_, _ = p.Wait()
		return nil, err
	}
	return p, nil
}

func (p *Process) start(opt Options) error {
	if err := p.install(opt); err != nil {
		return err
	}
	proc, err := os.StartProcess(opt.Path, opt.Args, &os.ProcAttr{
		Files: opt.Files, Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, PidFD: &p.pidfd, Setpgid: opt.OwnGroup},
	})
	if err != nil {
		return err
	}
	p.process, p.PID = proc, proc.Pid
	return nil
}

// install puts the filter on the calling thread.
func (p *Process) install(opt Options) error {
	f := opt.Filter.program()
	prog := unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
	set := func(flags uintptr) (int, unix.Errno) {
		fd, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
			flags|unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&prog)))
		return int(fd), e
	}
	flags := uintptr(unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)
	if opt.Interruptible {
		flags = 0
	}
	fd, e := set(flags)
	if e == unix.EACCES { // without privileges only for programs that can gain none
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("no_new_privs: %w", err)
		}
		fd, e = set(flags)
	}
	if e == unix.EINVAL && flags != 0 {
		flags = 0
		fd, e = set(flags)
	}
	runtime.KeepAlive(f)
	switch e {
	case 0:
	case unix.EBUSY:
		return ErrListenerTaken
	case unix.ENOSYS, unix.EINVAL:
		return fmt.Errorf("this kernel has no seccomp user notifications (Linux 5.9 or newer has): %w", e)
	default:
		return fmt.Errorf("seccomp: %w", e)
	}
	p.listener, p.killable = fd, flags != 0
	// The caller waits for the answer: the two may as well share a processor
	// (Linux 6.6; only a matter of speed).
	_, _, _ = unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd),
		unix.SECCOMP_IOCTL_NOTIF_SET_FLAGS, unix.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
	return nil
}

func (p *Process) ioctl(req uint, arg unsafe.Pointer) (int, error) {
	p.open.RLock() // an answer that comes late must not reach another file
	defer p.open.RUnlock()
	for {
		if p.listener < 0 {
			return 0, unix.EBADF
		}
		n, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(p.listener), uintptr(req), uintptr(arg))
		switch e {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, e
		}
	}
}

// Serve calls handle with every call that waits, one after the other, until the
// program has ended.
func (p *Process) Serve(handle func(*Call)) error {
	fds := []unix.PollFd{{Fd: int32(p.listener), Events: unix.POLLIN}, {Fd: int32(p.pidfd), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds, -1); err == unix.EINTR {
			continue
		} else if err != nil {
			return fmt.Errorf("poll: %w", err)
		}
		if fds[0].Revents&unix.POLLIN == 0 {
			if fds[1].Revents != 0 || fds[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0 {
				return nil
			}
			continue
		}
		var n notification
		if _, err := p.ioctl(unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)); err != nil {
			continue // the caller was killed or interrupted meanwhile
		}
		c := &Call{TID: int(n.pid), Nr: int(n.nr), Args: n.args, p: p, id: n.id, ip: n.ip}
		if answer := p.recall(c); answer != nil {
			answer(c)
			continue
		}
		handle(c)
	}
}

// remember keeps the answer to a call that was interrupted while it was being handled. If
// calls can only be killed there is nothing to remember: the thread is dead.
func (p *Process) remember(c *Call, answer func(*Call)) {
	if p.killable {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lost[c.TID] = lostAnswer{c.Nr, c.ip, c.Args, c.watched, c.memory(), answer}
}

func (p *Process) recall(c *Call) func(*Call) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l, ok := p.lost[c.TID]
	if !ok || l.nr != c.Nr || l.ip != c.ip || l.args != c.Args {
		return nil
	}
	c.watched = l.watched
	if delete(p.lost, c.TID); !bytes.Equal(c.memory(), l.memory) {
		c.watched = nil
		return nil // another call of the same form
	}
	return l.answer
}

// Signal sends a signal to the program.
func (p *Process) Signal(sig unix.Signal) error {
	p.open.RLock()
	defer p.open.RUnlock()
	if p.pidfd < 0 {
		return unix.ESRCH
	}
	return unix.PidfdSendSignal(p.pidfd, sig, nil, 0)
}

// Wait waits for the program's end and returns how it ended. Serve must have returned,
// and no tracer may be active: Wait would consume their events.
func (p *Process) Wait() (unix.WaitStatus, error) {
	defer p.close()
	state, err := p.process.Wait()
	if err != nil {
		return 0, err
	}
	return unix.WaitStatus(state.Sys().(syscall.WaitStatus)), nil
}

func (p *Process) close() {
	p.open.Lock()
	defer p.open.Unlock()
	for _, fd := range []*int{&p.listener, &p.pidfd} {
		if *fd >= 0 {
			_ = unix.Close(*fd)
		}
		*fd = -1
	}
	close(p.ended)
}

// Watch calls a function once the program has ended, even while one of its calls is being
// answered.
func (p *Process) Watch(ended func()) {
	p.open.RLock()
	fd, err := unix.FcntlInt(uintptr(p.pidfd), unix.F_DUPFD_CLOEXEC, 3)
	p.open.RUnlock()
	if err != nil {
		return
	}
	go func() {
		defer unix.Close(fd)
		for {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			if err != unix.EINTR {
				ended()
				return
			}
		}
	}()
}

// ErrNoMemoryAccess means that this process may not read the program's memory.
var ErrNoMemoryAccess = errors.New("this kernel does not let a process read its child's memory: " +
	"kernel.yama.ptrace_scope is 2 or 3, or QEMU has file capabilities")

// checkAccess tries to read where nothing is.
func (p *Process) checkAccess() error {
	var b [1]byte
	_, err := unix.ProcessVMReadv(p.PID, []unix.Iovec{{Base: &b[0], Len: 1}}, []unix.RemoteIovec{{Base: 1, Len: 1}}, 0)
	if err == unix.EPERM || err == unix.ENOSYS {
		return ErrNoMemoryAccess
	}
	return nil
}
