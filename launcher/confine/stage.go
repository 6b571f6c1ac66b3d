package confine

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// order is what the launcher tells the stage.
type order struct {
	Box     Box    `json:"box"`
	Program string `json:"program"`        // the file, without symbolic links: its data lies next to it
	Try     string `json:"try,omitempty"`  // a file that the box does not let it open
	Parent  int    `json:"parent"`         // the launcher
	End     bool   `json:"end,omitempty"`  // with the launcher's thread
	Report  int    `json:"report"`         // socket to write a Report to
	Wait    bool   `json:"wait,omitempty"` // until the launcher says there that it may go on
}

// Report is what the stage found before it became the program.
type Report struct {
	// Refused is how the kernel refused what the box forbids: EACCES, ENOENT.
	Refused string `json:"refused,omitempty"`
	Error   string `json:"error,omitempty"` // it did not come that far
	// Unshown is whether that was because a container's rules allow a namespace, and no mounts.
	Unshown bool `json:"unshown,omitempty"`
}

// maxOrder bounds what the launcher tells the stage.
const maxOrder = 1 << 20

// Run is the whole of the stage: "FD PROGRAM ARGUMENT…", with the descriptor that an order is read
// from. It returns only if it fails, with the exit code.
func Run(args []string) int {
	if len(args) < 2 {
		return 2
	}
	runtime.LockOSThread()
	fd, err := strconv.Atoi(args[0])
	if err != nil {
		return 2
	}
	o, err := readOrder(fd)
	if err != nil {
		fmt.Fprintln(os.Stderr, "vmlatch: stage:", err)
		return 1
	}
	unix.CloseOnExec(o.Report)
	if o.Wait {
		if n, err := unix.Read(o.Report, make([]byte, 1)); n != 1 || err != nil {
			return 1 // the launcher has gone, or given up
		}
	}
	r := Report{}
	if err = o.enter(&r); err == nil {
		o.tell(&r)
		err = &os.PathError{Op: "exec", Path: args[1], Err: syscall.Exec(o.Program, args[1:], os.Environ())}
	}
	o.tell(&Report{Error: err.Error(), Unshown: errors.Is(err, errUnshown)})
	return 1
}

func readOrder(fd int) (*order, error) {
	f := os.NewFile(uintptr(fd), "order")
	defer f.Close()
	b := make([]byte, maxOrder)
	n, err := f.ReadAt(b, 0)
	if n == len(b) || n == 0 {
		return nil, fmt.Errorf("order of %d bytes: %w", n, err)
	}
	o := &order{}
	return o, json.Unmarshal(b[:n], o)
}

func (o *order) tell(r *Report) {
	b, err := json.Marshal(r)
	if err == nil {
		_, _ = unix.Write(o.Report, append(b, '\n'))
	}
}

// enter puts this process into its box. The order of the steps is that each needs a right which a
// later one takes away.
func (o *order) enter(r *Report) error {
	b := &o.Box
	steps := []struct {
		name string
		do   func() error
	}{
		{"limits", b.limit},
		{"keyring", b.leaveKeys},
		{"files", b.show},
		{"bounding set", dropBounding},
		{"user", b.become},
		{"capabilities", dropOwn},
		{"end with the launcher", o.tie},
		{"no new privileges", func() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }},
		{"Landlock", b.restrict},
		{"filter", b.filter},
		{"end with the other", b.follow},
		{"proof", func() error { return o.prove(r) }},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// limit sets the limits of this process alone.
func (b *Box) limit() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return err
	}
	if b.MemoryLock == 0 {
		return nil
	}
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &now); err != nil || now.Cur >= b.MemoryLock {
		return err
	}
	now.Cur, now.Max = b.MemoryLock, max(now.Max, b.MemoryLock)
	return unix.Setrlimit(unix.RLIMIT_MEMLOCK, &now)
}

// leaveKeys takes a session keyring of its own, with nothing in it (session-keyring(7)). A kernel
// without keyrings has none to leave.
func (b *Box) leaveKeys() error {
	if b.Keys {
		return nil
	}
	const anonymous = 0
	_, _, errno := unix.RawSyscall(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, anonymous, 0)
	if errno != 0 && errno != unix.ENOSYS && errno != unix.EPERM { // then the filter keeps it from keys
		return os.NewSyscallError("keyctl", errno)
	}
	return nil
}

func (b *Box) show() error {
	if !b.Has(Mount) {
		return nil
	}
	err := b.enter()
	if oneOf(err, unix.EPERM, unix.EACCES, unix.EINVAL, unix.ENOSYS) != 0 { // and not what may pass
		return fmt.Errorf("%w: %w", errUnshown, err)
	}
	return err
}

var errUnshown = errors.New("a file system of its own")

// dropBounding takes all capabilities out of what a program could ever gain.
func dropBounding() error {
	for c := uintptr(0); ; c++ {
		switch err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); {
		case errors.Is(err, unix.EINVAL): // the last one was the one before
			return nil
		case errors.Is(err, unix.EPERM): // a user who has none to give away
			return nil
		case err != nil:
			return err
		}
	}
}

// dropOwn sees to it that the program begins without capabilities (capabilities(7), "Transformation
// of capabilities during execve"). Root would keep those that can be inherited; from other users
// the exec takes all but the ambient ones, so that a filter may forbid the second call to them.
func dropOwn() error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return err
	}
	var none [2]unix.CapUserData
	err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0])
	if errors.Is(err, unix.EPERM) && os.Geteuid() != 0 {
		err = nil
	}
	return err
}

// become takes the box's user. It is done for this thread alone, which becomes the program.
func (b *Box) become() error {
	if b.UID == 0 {
		return nil
	}
	groups := make([]uint32, len(b.Groups)+1) // one more, so that there is an address
	for i, g := range b.Groups {
		groups[i] = uint32(g)
	}
	_, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(b.Groups)), uintptr(unsafe.Pointer(&groups[0])), 0)
	if errno != 0 {
		return os.NewSyscallError("setgroups", errno)
	}
	uid, gid := uintptr(b.UID), uintptr(b.UID)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
		return os.NewSyscallError("setresgid", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
		return os.NewSyscallError("setresuid", errno)
	}
	return nil
}

// tie ends the process with the thread that forked it; a change of the user has undone that.
func (o *order) tie() error {
	if !o.End {
		return nil
	}
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return err
	}
	ended := os.Getppid() != o.Parent
	if o.Box.Has(PID) { // it sees no parent there
		fds := []unix.PollFd{{Fd: int32(o.Report)}}
		_, err := unix.Poll(fds, 0)
		ended = err == nil && fds[0].Revents&unix.POLLHUP != 0
	}
	if ended {
		return errors.New("the launcher has ended")
	}
	return nil
}

func (b *Box) follow() error {
	if b.Life == 0 {
		return nil
	}
	return EndWith(b.Life)
}

// EndWith has the kernel kill this process when a pipe, whose reading end it has, has no writer any
// more (fcntl(2), F_SETSIG). It holds for the program that the process becomes. The error is about
// a pipe that has none now.
func EndWith(pipe int) error {
	flags, err := unix.FcntlInt(uintptr(pipe), unix.F_GETFL, 0)
	for _, set := range []struct{ cmd, to int }{
		{unix.F_SETOWN, os.Getpid()}, {unix.F_SETSIG, int(unix.SIGKILL)}, {unix.F_SETFL, flags | unix.O_ASYNC},
	} {
		if err == nil {
			_, err = unix.FcntlInt(uintptr(pipe), set.cmd, set.to)
		}
	}
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	fds := []unix.PollFd{{Fd: int32(pipe)}} // it began to count only now
	if _, err := unix.Poll(fds, 0); err == nil && fds[0].Revents&unix.POLLHUP != 0 {
		return errors.New("the other process has gone")
	}
	return nil
}

// prove tries what the box forbids. A box without walls forbids nothing.
func (o *order) prove(r *Report) error {
	if o.Try == "" {
		return nil
	}
	fd, err := unix.Open(o.Try, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		_ = unix.Close(fd)
		return fmt.Errorf("this kernel lets it open %s, which it must not", o.Try)
	}
	e := oneOf(err, unix.EACCES, unix.ENOENT) // by rules, or as it is not there
	if e == 0 {
		return fmt.Errorf("opening %s proves nothing: %w", o.Try, err)
	}
	r.Refused = unix.ErrnoName(e)
	return nil
}
