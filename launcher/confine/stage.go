package confine

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// order is what the launcher tells the stage.
type order struct {
	Box     Box      `json:"box"`
	Program string   `json:"program"` // the file, without symbolic links: its data lies next to it
	Argv    []string `json:"argv"`
	Try     string   `json:"try,omitempty"` // a file that the box does not let it open
	Parent  int      `json:"parent"`        // the launcher
	End     bool     `json:"end,omitempty"` // with the launcher's thread

	files  []int // the program's descriptors, by the numbers that they have here
	report int   // socket to write a Report to
}

// Report is what the stage found before it became the program.
type Report struct {
	// Refused is how the kernel refused what the box forbids: EACCES, ENOENT. Ruled is how
	// Landlock's rules refused to list what the other walls show; "" without rules.
	Refused string `json:"refused,omitempty"`
	Ruled   string `json:"ruled,omitempty"`
	// Label is the AppArmor profile that the program gets; "" for none.
	Label string `json:"label,omitempty"`
	Error string `json:"error,omitempty"` // it did not come that far
	// Unshown is whether that was because a container's rules allow a namespace, and no mounts.
	Unshown bool `json:"unshown,omitempty"`
}

// Bounds of what the launcher tells the stage.
const (
	maxOrder = 1 << 20
	maxFiles = 1 << 12
)

// Run is the whole of the stage: "FD", with the number of a socket by which it is told what to
// become. It returns only if it fails, or the launcher ends, with the exit code.
func Run(args []string) int {
	if len(args) != 1 {
		return 2
	}
	runtime.LockOSThread()
	fd, err := strconv.Atoi(args[0])
	if err != nil {
		return 2
	}
	unix.CloseOnExec(fd)
	o, err := receive(fd)
	if err != nil {
		return 1 // the launcher has gone, or needs no stage
	}
	r := Report{}
	if err = o.enter(&r); err == nil {
		o.tell(&r)
		err = &os.PathError{Op: "exec", Path: o.Argv[0], Err: syscall.Exec(o.Program, o.Argv, os.Environ())}
	}
	o.tell(&Report{Error: err.Error(), Unshown: errors.Is(err, errUnshown)})
	return 1
}

// receive waits for an order, and the descriptors that come with it.
func receive(socket int) (*order, error) {
	var fds []int
	for want := 1; len(fds) < want; {
		word, rights := make([]byte, 4), make([]byte, unix.CmsgSpace(4*maxRights))
		n, oobn, _, _, err := unix.Recvmsg(socket, word, rights, unix.MSG_CMSG_CLOEXEC|unix.MSG_WAITALL)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n != len(word) {
			return nil, fmt.Errorf("order: %d bytes: %w", n, errors.Join(io.ErrUnexpectedEOF, err))
		}
		if want = int(binary.BigEndian.Uint32(word)); want > maxFiles {
			return nil, errors.New("order: too many descriptors")
		}
		messages, err := unix.ParseSocketControlMessage(rights[:oobn])
		if err != nil {
			return nil, err
		}
		for i := range messages {
			some, err := unix.ParseUnixRights(&messages[i])
			if err != nil {
				return nil, err
			}
			fds = append(fds, some...)
		}
	}
	f := os.NewFile(uintptr(fds[0]), "order")
	defer f.Close()
	b := make([]byte, maxOrder)
	n, err := f.ReadAt(b, 0)
	if n == len(b) || n == 0 {
		return nil, fmt.Errorf("order of %d bytes: %w", n, err)
	}
	o := &order{files: fds[1:], report: socket}
	return o, json.Unmarshal(b[:n], o)
}

// place gives the program's descriptors their numbers. What has these numbers here is not needed
// any more.
func (o *order) place() error {
	aside := func(fd *int) (err error) {
		if *fd < len(o.files) {
			*fd, err = unix.FcntlInt(uintptr(*fd), unix.F_DUPFD_CLOEXEC, len(o.files))
		}
		return os.NewSyscallError("fcntl", err)
	}
	err := aside(&o.report)
	for i := range o.files {
		err = errors.Join(err, aside(&o.files[i]))
	}
	for i, fd := range o.files {
		if err == nil {
			err = os.NewSyscallError("dup3", unix.Dup3(fd, i, 0))
		}
	}
	return err
}

func (o *order) tell(r *Report) {
	b, err := json.Marshal(r)
	if err == nil {
		_, _ = unix.Write(o.report, append(b, '\n'))
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
		{"label", func() error { return o.label(r) }},
		{"namespaces", b.separate},
		{"files", b.show},
		{"bounding set", dropBounding},
		{"user", b.become},
		{"capabilities", dropOwn},
		{"end with the launcher", o.tie},
		{"no new privileges", func() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }},
		{"Landlock", b.restrict},
		{"filter", b.filter},
		{"descriptors", o.place},
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

// separate makes the namespaces that need no fork, for this thread alone.
func (b *Box) separate() error {
	f := flags(b.Namespaces, false)
	if f == 0 {
		return nil
	}
	return unshown(os.NewSyscallError("unshare", unix.Unshare(int(f))))
}

func (b *Box) show() error {
	if !b.Has(Mount) {
		return nil
	}
	return unshown(b.enter())
}

// unshown marks errors of hosts that allow some namespaces and not others, or no mounts in them.
func unshown(err error) error {
	if oneOf(err, unix.EPERM, unix.EACCES, unix.EINVAL, unix.ENOSYS, unix.ENOSPC) != 0 { // and not what may pass
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
		ended = hungUp(o.report)
	}
	if ended {
		return errors.New("the launcher has ended")
	}
	return nil
}

// hungUp reports whether the other end of a pipe or a socket has been closed.
func hungUp(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd)}}
	_, err := unix.Poll(fds, 0)
	return err == nil && fds[0].Revents&unix.POLLHUP != 0
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
	if hungUp(pipe) { // it began to count only now
		return errors.New("the other process has gone")
	}
	return nil
}

// prove tries what the box forbids. A box without walls forbids nothing.
func (o *order) prove(r *Report) (err error) {
	if o.Try == "" {
		return nil
	}
	// By rules, or as it is not there.
	if r.Refused, err = refuses(o.Try, unix.EACCES, unix.ENOENT); err != nil || o.Box.Landlock == 0 {
		return err
	}
	r.Ruled, err = refuses("/", unix.EACCES) // it is there, and its mode is for everybody
	return err
}

// refuses is the name of the error with which a file cannot be opened. Other errors prove nothing.
func refuses(path string, with ...unix.Errno) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		_ = unix.Close(fd)
		return "", fmt.Errorf("this kernel lets it open %s, which it must not", path)
	}
	e := oneOf(err, with...)
	if e == 0 {
		return "", fmt.Errorf("opening %s proves nothing: %w", path, err)
	}
	return unix.ErrnoName(e), nil
}
