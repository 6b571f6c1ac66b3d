package confine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Prepared is a start by way of the stage.
type Prepared struct {
	Argv []string // to fork instead of the program's
	// Files are to be inherited behind the program's own.
	Files []*os.File

	order  *order
	memory *os.File // what the order is read from
	report *os.File // our end
}

// Prepare makes the stage ready for a program. stage is the command line that runs [Run], argv the
// program's, and inherited how many descriptors it gets, the standard ones too. try is a file that
// it must not be able to open. With wait it does nothing until [Prepared.Go]. The caller closes
// what comes back.
func (b *Box) Prepare(stage, argv []string, inherited int, try string, wait bool) (*Prepared, error) {
	program, err := filepath.EvalSymlinks(argv[0])
	if err != nil {
		return nil, err
	}
	p := &Prepared{order: &order{
		Box: *b.resolved(), Program: program, Parent: os.Getpid(), End: b.Foreground, Report: inherited + 1,
		Wait: wait,
	}}
	if b.Landlock > 0 || b.Has(Mount) || b.UID != 0 {
		p.order.Try = try
	}
	fd, err := unix.MemfdCreate("vmlatch-stage", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	p.memory = os.NewFile(uintptr(fd), "order")
	if err := json.NewEncoder(p.memory).Encode(p.order); err != nil {
		p.Close()
		return nil, err
	}
	pipe, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		p.Close()
		return nil, os.NewSyscallError("socketpair", err)
	}
	if err := unix.SetNonblock(pipe[0], true); err != nil { // so that a read can be given up
		_, _ = unix.Close(pipe[0]), unix.Close(pipe[1])
		p.Close()
		return nil, os.NewSyscallError("fcntl", err)
	}
	p.report = os.NewFile(uintptr(pipe[0]), "report")
	p.Files = []*os.File{p.memory, os.NewFile(uintptr(pipe[1]), "report")}
	p.Argv = append(append(append([]string{}, stage...), fmt.Sprint(inherited)), argv...)
	return p, nil
}

// Attributes adds what the fork itself does: namespaces, and who the box's users are in them.
func (p *Prepared) Attributes(a *syscall.SysProcAttr) {
	b := &p.order.Box
	for name, flag := range map[string]uintptr{
		User: unix.CLONE_NEWUSER, Mount: unix.CLONE_NEWNS, Network: unix.CLONE_NEWNET, IPC: unix.CLONE_NEWIPC,
		PID: unix.CLONE_NEWPID,
	} {
		if b.Has(name) {
			a.Cloneflags |= flag
		}
	}
	if !b.Has(User) {
		return
	}
	// Until the stage has made use of them; a user who is not root would lose them at its start.
	a.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SETPCAP, unix.CAP_SETUID, unix.CAP_SETGID}
	uid, gid := os.Geteuid(), os.Getegid()
	if b.UID != 0 {
		uid, gid = b.UID, b.UID
	}
	a.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
	a.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
	if os.Geteuid() != 0 {
		return
	}
	a.GidMappingsEnableSetgroups = true
	for _, g := range b.Groups {
		if g != gid {
			a.GidMappings = append(a.GidMappings, syscall.SysProcIDMap{ContainerID: g, HostID: g, Size: 1})
		}
	}
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

// Go lets a stage go on that waits.
func (p *Prepared) Go() error {
	_, err := p.report.Write([]byte{1})
	return err
}

// Await returns when the forked process has become the program, with what it found; an error says
// why it has not, and the process may be there still.
func (p *Prepared) Await(ctx context.Context) (r Report, err error) {
	ctx, cancel := context.WithTimeout(ctx, stageTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = p.report.SetReadDeadline(time.Unix(1, 0)) })()
	for _, f := range p.Files {
		_ = f.Close() // the stage has its own
	}
	p.Files = nil
	b, err := io.ReadAll(io.LimitReader(p.report, maxOrder))
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

// Close closes what the caller has left.
func (p *Prepared) Close() {
	for _, f := range append(p.Files, p.memory, p.report) {
		if f != nil {
			_ = f.Close()
		}
	}
}
