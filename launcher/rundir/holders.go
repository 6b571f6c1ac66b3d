package rundir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/internal/flock"
)

// lockFile is one lock file, and no later one at its path: whoever holds its lock is
// of the VM that was looked at, though another VM of the name may run by now.
type lockFile struct {
	f    *os.File // open and not locked
	name string   // of the VM
}

// openLock opens a lock file without locking it.
func openLock(path, name string) (*lockFile, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return &lockFile{os.NewFile(uintptr(fd), path), name}, nil
}

// held says whether somebody holds the lock.
func (l *lockFile) held() (bool, error) {
	err := unix.Flock(int(l.f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	if err != nil {
		return false, os.NewSyscallError("flock", err)
	}
	return false, unix.Flock(int(l.f.Fd()), unix.LOCK_UN)
}

// free returns when nobody holds the lock.
func (l *lockFile) free(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { // ends with the process if the lock is never let go
		var err error
		for err = unix.EINTR; errors.Is(err, unix.EINTR); {
			err = unix.Flock(int(l.f.Fd()), unix.LOCK_SH)
		}
		if err == nil {
			err = unix.Flock(int(l.f.Fd()), unix.LOCK_UN)
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// holders returns the processes that hold the lock, this one excepted.
func (l *lockFile) holders() ([]int, error) {
	var lock unix.Stat_t
	if err := unix.Fstat(int(l.f.Fd()), &lock); err != nil {
		return nil, err
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err == nil && pid != os.Getpid() && holds(pid, &lock) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// holds says whether a process holds the lock file: it has it open, and by that
// very open file the exclusive lock (proc(5), fdinfo). Having it open is not
// enough, for other commands look at it. Processes of others cannot have it.
func holds(pid int, file *unix.Stat_t) bool {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return false
	}
	for _, fd := range fds {
		var st unix.Stat_t
		if unix.Stat(filepath.Join(dir, "fd", fd.Name()), &st) != nil || st.Dev != file.Dev || st.Ino != file.Ino {
			continue
		}
		info, _ := os.ReadFile(filepath.Join(dir, "fdinfo", fd.Name()))
		for line := range strings.Lines(string(info)) {
			if f := strings.Fields(line); len(f) > 4 && f[0] == "lock:" && f[2] == "FLOCK" && f[4] == "WRITE" {
				return true
			}
		}
	}
	return false
}

// open opens a pidfd and then checks that the process behind it holds the lock, so
// that a reused pid is never taken for the VM.
func (l *lockFile) open(pid int) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		if errors.Is(err, unix.ESRCH) {
			return nil, ErrNotFound
		}
		return nil, err
	}
	p := &Process{PID: pid, fd: fd}
	var lock unix.Stat_t
	if unix.Fstat(int(l.f.Fd()), &lock) != nil || !holds(pid, &lock) {
		p.Close()
		return nil, ErrNotFound
	}
	return p, nil
}

// killTimeout bounds the wait for a killed process: the kernel may have to
// write back memory or wait for a device first.
const killTimeout = 30 * time.Second

// kill ends every process that holds the lock, by SIGKILL, and returns when the
// lock is free. Nothing is sent to a process that does not hold the lock.
func (l *lockFile) kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	for {
		pids, err := l.holders()
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			// A process that is ending shows no files any more, but the kernel
			// may not have let go of its locks yet.
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			if err := l.free(ctx); err != nil {
				return fmt.Errorf("%s: its lock is held by a process whose files cannot be seen: %w", l.name, err)
			}
			return nil
		}
		for _, pid := range pids {
			if err := l.killOne(ctx, pid); err != nil {
				return fmt.Errorf("end %s (process %d): %w", l.name, pid, err)
			}
		}
	}
}

func (l *lockFile) killOne(ctx context.Context, pid int) error {
	p, err := l.open(pid)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.Close()
	if err := p.Signal(unix.SIGKILL); err != nil {
		return err
	}
	return p.Wait(ctx)
}

// pin fixes which VM of the name the Dir is about: the one whose vm.lock lies there
// at the first call.
func (d *Dir) pin() (*lockFile, error) {
	if d.id == nil {
		id, err := openLock(d.Path(VMLock), d.Name)
		if err != nil {
			return nil, err
		}
		d.id = id
	}
	return d.id, nil
}

// Same says whether two Dirs are about the same VM, and not only the same name.
func (d *Dir) Same(other *Dir) bool {
	a, err1 := d.pin()
	b, err2 := other.pin()
	var sa, sb unix.Stat_t
	return err1 == nil && err2 == nil && unix.Fstat(int(a.f.Fd()), &sa) == nil && unix.Fstat(int(b.f.Fd()), &sb) == nil &&
		sa.Dev == sb.Dev && sa.Ino == sb.Ino
}

// Kill ends every process of the VM, by SIGKILL, and returns when they have gone.
func (d *Dir) Kill(ctx context.Context) error {
	id, err := d.pin()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if d.vm != nil { // the lock is ours; others may hold it through us
		pids, err := id.holders()
		for _, pid := range pids {
			err = errors.Join(err, id.killOne(ctx, pid))
		}
		return err
	}
	return id.kill(ctx)
}

// KillIfHeld is Kill for a VM whose main process has just ended: only if the
// lock is still held are the others looked for.
func (d *Dir) KillIfHeld(ctx context.Context) error {
	id, err := d.pin()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if still, err := id.held(); err != nil || !still {
		return err
	}
	return id.kill(ctx)
}

// Holders returns the processes that hold vm.lock, this one excepted.
func (d *Dir) Holders() ([]int, error) {
	id, err := d.pin()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return id.holders()
}

// OpenProcess finds the VM's process: the recorded one if it still holds
// vm.lock, else the first that does.
func (d *Dir) OpenProcess(hint int) (*Process, error) {
	id, err := d.pin()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", d.Name, ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	if hint > 0 {
		if p, err := id.open(hint); err == nil {
			return p, nil
		}
	}
	pids, err := id.holders()
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		if p, err := id.open(pid); err == nil {
			return p, nil
		}
	}
	return nil, fmt.Errorf("%s: %w", d.Name, ErrNotFound)
}

// WaitEnd returns when no process holds vm.lock any more, or with ctx's error.
func (d *Dir) WaitEnd(ctx context.Context, e *Entry) error {
	hint := 0
	if e.Record != nil {
		hint = e.Record.PID
	}
	for {
		p, err := d.OpenProcess(hint)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		err = p.Wait(ctx)
		p.Close()
		if err != nil {
			return err
		}
	}
}

// AwaitLaunch returns when no command is at work on the VM any more.
func (d *Dir) AwaitLaunch(ctx context.Context) error {
	l, err := openLock(d.Path(LaunchLock), d.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return l.free(ctx)
}

// LockOwner makes the lock that the owner's command and whatever it starts inherit,
// by which they can be found. The caller closes it once they have it.
func (d *Dir) LockOwner() (*os.File, error) { return d.lockFor(ownerLock) }

// KillOwner ends what the owner's command has left running.
func (d *Dir) KillOwner(ctx context.Context) error { return d.killHolders(ctx, ownerLock) }

// LockHelpers makes the lock that the VM's helpers inherit, by which they can be
// found. The caller closes it once they have it.
func (d *Dir) LockHelpers() (*os.File, error) { return d.lockFor(helperLock) }

// KillHelpers ends helpers that have not ended with QEMU.
func (d *Dir) KillHelpers(ctx context.Context) error { return d.killHolders(ctx, helperLock) }

func (d *Dir) lockFor(name string) (*os.File, error) {
	return flock.Open(d.Path(name), unix.O_CREAT, unix.LOCK_EX|unix.LOCK_NB)
}

func (d *Dir) killHolders(ctx context.Context, name string) error {
	l, err := openLock(d.Path(name), d.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer l.f.Close()
	return l.kill(ctx)
}
