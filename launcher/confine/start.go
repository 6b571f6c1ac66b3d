package confine

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Stage is a process that waits to be put into a box, and to become a program. It may be forked
// before it is known which: then it starts next to what finds that out.
type Stage struct {
	PID int

	forked uintptr  // flags of the namespaces that its fork made
	conn   *os.File // our end of the socket by which it is told, and tells
}

// Fork forks a stage. argv is the command line that runs [Run], but for the number of a descriptor;
// namespaces are those of its box. With foreground it ends with the thread that forks it. The
// caller closes it.
func Fork(argv, namespaces []string, foreground bool) (*Stage, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(pair[1])
	if err := unix.SetNonblock(pair[0], true); err != nil { // so that a read can be given up
		_ = unix.Close(pair[0])
		return nil, os.NewSyscallError("fcntl", err)
	}
	s := &Stage{conn: os.NewFile(uintptr(pair[0]), "stage"), forked: flags(namespaces, true)}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		s.Close()
		return nil, err
	}
	defer null.Close()
	sys := &syscall.SysProcAttr{Setsid: true, Cloneflags: s.forked} // Ctrl-C is for us, not for the VM
	if foreground {
		sys.Pdeathsig = syscall.SIGKILL
	}
	if s.forked&unix.CLONE_NEWUSER != 0 { // until it has made use of them: its exec would take them
		sys.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SETPCAP, unix.CAP_SETUID, unix.CAP_SETGID}
	}
	const own = 3 // the number of its end
	s.PID, err = syscall.ForkExec(argv[0], append(slices.Clone(argv), fmt.Sprint(own)), &syscall.ProcAttr{
		Dir: "/", Env: Environ(), Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), uintptr(pair[1])}, Sys: sys,
	})
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Enter puts the stage into a box and makes it a program, which has files as its descriptors, from
// 0 on. try is a file that it must not be able to open. [Stage.Await] tells how that ended.
func (s *Stage) Enter(b *Box, argv []string, files []*os.File, try string) error {
	program, err := filepath.EvalSymlinks(argv[0])
	if err != nil {
		return err
	}
	o := &order{Box: *b.resolved(), Program: program, Argv: argv, Parent: os.Getpid(), End: b.Foreground}
	if b.Landlock > 0 || b.Has(Mount) || b.UID != 0 {
		o.Try = try
	}
	if b.Has(User) {
		if err := s.mapUsers(b); err != nil {
			return fmt.Errorf("its users: %w", err)
		}
	}
	fd, err := unix.MemfdCreate("vmlatch-stage", unix.MFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	text := os.NewFile(uintptr(fd), "order")
	defer text.Close()
	if err := json.NewEncoder(text).Encode(o); err != nil {
		return err
	}
	return s.send(append([]*os.File{text}, files...))
}

// maxRights is how many descriptors a message can carry (unix(7), SCM_MAX_FD).
const maxRights = 253

// send sends descriptors, and before them how many they are.
func (s *Stage) send(files []*os.File) error {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	word := binary.BigEndian.AppendUint32(nil, uint32(len(files)))
	for part := range slices.Chunk(files, maxRights) {
		var fds []int
		for _, f := range part {
			fds = append(fds, int(f.Fd()))
		}
		var sendErr error
		err := raw.Write(func(fd uintptr) bool {
			sendErr = unix.Sendmsg(int(fd), word, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
			return !errors.Is(sendErr, unix.EAGAIN)
		})
		if err = errors.Join(err, os.NewSyscallError("sendmsg", sendErr)); err != nil {
			return err
		}
	}
	return nil
}

// mapUsers says who the box's users are in the stage's namespace (user_namespaces(7)): the same as
// outside, and no others.
func (s *Stage) mapUsers(b *Box) error {
	uid, gid := os.Geteuid(), os.Getegid()
	if b.UID != 0 {
		uid, gid = b.UID, b.UID
	}
	same := func(id int) string { return fmt.Sprintf("%d %d 1\n", id, id) }
	groups := same(gid)
	write := func(name, text string) error {
		return os.WriteFile(fmt.Sprintf("/proc/%d/%s", s.PID, name), []byte(text), 0)
	}
	if os.Geteuid() != 0 { // who may map a group of its own only if none can be given up
		if err := write("setgroups", "deny"); err != nil {
			return err
		}
	} else {
		for _, g := range b.Groups {
			if g != gid {
				groups += same(g)
			}
		}
	}
	return errors.Join(write("gid_map", groups), write("uid_map", same(uid)))
}

// Refused reports whether an error of a fork means that this process may make no namespaces.
func Refused(err error) bool {
	return oneOf(err, unix.EPERM, unix.ENOSPC, unix.EUSERS, unix.EINVAL, unix.EACCES) != 0
}

// oneOf is the one of several errors that err is; 0 for none.
func oneOf(err error, list ...unix.Errno) unix.Errno {
	for _, e := range list {
		if errors.Is(err, e) {
			return e
		}
	}
	return 0
}

// stageTimeout is how long the stage may take: it waits for nothing but the file system.
const stageTimeout = 30 * time.Second

// Await returns when the stage has become the program, with what it found; an error says why it has
// not, and the process may be there still.
func (s *Stage) Await(ctx context.Context) (r Report, err error) {
	ctx, cancel := context.WithTimeout(ctx, stageTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) })()
	b, err := io.ReadAll(io.LimitReader(s.conn, maxOrder))
	if err != nil {
		return r, fmt.Errorf("it cannot be confined: %w", errors.Join(ctx.Err(), err))
	}
	for line := range bytes.Lines(b) {
		r = Report{}
		if err := json.Unmarshal(line, &r); err != nil {
			return r, fmt.Errorf("stage: %w", err)
		}
	}
	switch {
	case r.Unshown:
		return r, fmt.Errorf("%w: %s", ErrNoMounts, r.Error)
	case r.Error != "":
		return r, errors.New("it cannot be confined: " + r.Error)
	case len(b) == 0:
		return r, errors.New("it cannot be confined: the stage ended")
	}
	return r, nil
}

// ErrNoMounts means that a namespace could be made, and nothing be mounted in it.
var ErrNoMounts = errors.New("nothing can be mounted here")

// Close closes our end of the socket. A stage that has been told nothing ends then.
func (s *Stage) Close() { _ = s.conn.Close() }

// Kill ends the process, and waits for its end.
func (s *Stage) Kill() {
	s.Close()
	_ = syscall.Kill(s.PID, syscall.SIGKILL)
	var status syscall.WaitStatus
	for {
		if _, err := syscall.Wait4(s.PID, &status, 0, nil); err != syscall.EINTR {
			return
		}
	}
}

// Early is a stage that was forked before its box was known, for the start that comes; nil is none.
type Early struct{ stage *Stage }

// ForkEarly forks one with the namespaces that most boxes have, if this host allows any. It is nil
// where that fails: the start says why.
func ForkEarly(argv []string, h Host) *Early {
	var namespaces []string
	if h.NoNamespaces == "" {
		namespaces = []string{User, PID}
	}
	s, err := Fork(argv, namespaces, false)
	if err != nil {
		return nil
	}
	return &Early{s}
}

// Take gives away the stage, if its fork made the namespaces that a box's must; nil if it did not,
// or if the stage has been given away.
func (e *Early) Take(b *Box) *Stage {
	if e == nil || e.stage == nil || e.stage.forked != flags(b.Namespaces, true) {
		return nil
	}
	s := e.stage
	e.stage = nil
	return s
}

// Close ends a stage that has not been taken.
func (e *Early) Close() {
	if e != nil && e.stage != nil {
		e.stage.Kill()
		e.stage = nil
	}
}
