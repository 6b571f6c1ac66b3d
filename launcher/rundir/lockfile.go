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
	"github.com/vmlatch/vmlatch/launcher/internal/procfs"
)

// lockFile is one lock file, and no later one at its path: a process that holds its
// lock belongs to the VM that was looked at, though another VM of the name may be
// running by now.
type lockFile struct {
	f    *os.File // open and not locked
	name string   // of the VM
	// blind is whether it is open for its place alone, as a process that has it keeps others from
	// opening it, by a lease. Then it counts as held.
	blind bool
}

// openLock opens a lock file without locking it.
func openLock(path, name string) (*lockFile, error) {
	const flags = unix.O_CLOEXEC | unix.O_NOFOLLOW
	open := func() (int, error) { return unix.Open(path, flags|unix.O_RDONLY|unix.O_NONBLOCK, 0) }
	fd, err := open()
	if errors.Is(err, unix.EACCES) && giveMode(path) == nil {
		fd, err = open()
	}
	blind := errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES)
	if blind {
		fd, err = unix.Open(path, flags|unix.O_PATH, 0)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return &lockFile{os.NewFile(uintptr(fd), path), name, blind}, nil
}

// giveMode gives a lock file of this user's the mode back that a process with a descriptor of it
// may have taken away.
func giveMode(path string) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != os.Geteuid() {
		return unix.EACCES
	}
	return unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), 0o600)
}

func (l *lockFile) close() { _ = l.f.Close() }

func (l *lockFile) stat() (st unix.Stat_t, err error) {
	err = flock.Control(l.f, func(fd int) error { return unix.Fstat(fd, &st) })
	return st, err
}

// held reports whether a process holds the lock.
func (l *lockFile) held() (bool, error) {
	if l.blind {
		return true, nil
	}
	err := flock.Control(l.f, func(fd int) error {
		if err := unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB); err != nil {
			return os.NewSyscallError("flock", err)
		}
		return unix.Flock(fd, unix.LOCK_UN)
	})
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// free returns when no process holds the lock, or with ctx's error.
func (l *lockFile) free(ctx context.Context) error {
	if l.blind { // nothing tells when
		<-ctx.Done()
		return ctx.Err()
	}
	if err := flock.Wait(ctx, l.f, unix.LOCK_SH); err != nil {
		return err
	}
	return flock.Control(l.f, func(fd int) error { return unix.Flock(fd, unix.LOCK_UN) })
}

// holders returns the processes that hold the lock, this one excepted.
func (l *lockFile) holders() ([]int, error) {
	lock, err := l.stat()
	if err != nil {
		return nil, err
	}
	all, err := procfs.PIDs()
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, pid := range all {
		if pid == os.Getpid() {
			continue
		}
		switch found, err := holds(pid, &lock); {
		case err != nil:
			return nil, err
		case found:
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// holds reports whether a process holds the lock file: it has it open, and by that
// very open file the exclusive lock (proc(5), fdinfo). Having it open is not
// enough, for other commands look at it. Processes of other users cannot have it.
func holds(pid int, file *unix.Stat_t) (bool, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return false, unlessHidden(err)
	}
	for _, fd := range fds {
		var st unix.Stat_t
		if unix.Stat(filepath.Join(dir, "fd", fd.Name()), &st) != nil || st.Dev != file.Dev || st.Ino != file.Ino {
			continue
		}
		info, err := os.ReadFile(filepath.Join(dir, "fdinfo", fd.Name()))
		if err := unlessHidden(err); err != nil {
			return false, err
		}
		for line := range strings.Lines(string(info)) {
			if f := strings.Fields(line); len(f) > 4 && f[0] == "lock:" && f[2] == "FLOCK" && f[4] == "WRITE" {
				return true, nil
			}
		}
	}
	return false, nil
}

// unlessHidden is err, unless it means that a process has ended or is another user's.
// Other errors, such as too many open files, tell nothing about the process.
func unlessHidden(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return err
}

// open opens a pidfd and then checks that the process behind it holds the lock, so
// that a reused pid is never taken for the VM.
func (l *lockFile) open(pid int) (*Process, error) {
	p, err := openPID(pid)
	if err != nil {
		return nil, err
	}
	lock, err := l.stat()
	found := false
	if err == nil {
		found, err = holds(pid, &lock)
	}
	if err == nil && !found {
		err = ErrNotFound
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// Bounds of a kill. The kernel may have to write back memory of a killed process,
// or wait for a device, before the process ends; one that has ended shows no files
// any more, but the kernel may not have let go of its locks yet.
const (
	killTimeout = 30 * time.Second
	freeTimeout = 5 * time.Second
)

// kill ends every process that holds the lock, by SIGKILL, and returns when the
// lock is free. Nothing is sent to a process that does not hold the lock.
func (l *lockFile) kill(ctx context.Context) error {
	return l.killWithin(ctx, killTimeout, freeTimeout)
}

func (l *lockFile) killWithin(ctx context.Context, all, last time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, all)
	defer cancel()
	for {
		pids, err := l.holders()
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return l.unseen(ctx, last)
		}
		if err := l.each(pids, func(pid int) error { return l.killOne(ctx, pid) }); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("end %s: %w", l.name, err)
		}
	}
}

// errUnseen means that the lock is held, and by no process that can be found: not even
// the VM's own user can see the files of a process that has made itself undumpable.
var errUnseen = errors.New("its lock is held by a process whose files cannot be seen")

// unseen returns when the lock, which no process was seen to hold, is free. Within a
// time it must be, for a process that ends shows no files any more before the kernel
// lets go of its locks.
func (l *lockFile) unseen(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	if err := l.free(ctx); err != nil {
		return fmt.Errorf("%s: %w: %w", l.name, errUnseen, err)
	}
	return nil
}

// each calls end for each process. One that cannot be ended does not protect the others.
func (l *lockFile) each(pids []int, end func(pid int) error) (err error) {
	for _, pid := range pids {
		if e := end(pid); e != nil {
			err = errors.Join(err, fmt.Errorf("end %s (process %d): %w", l.name, pid, e))
		}
	}
	return err
}

// killOne ends a process if it still holds the lock.
func (l *lockFile) killOne(ctx context.Context, pid int) error {
	p, err := l.open(pid)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.Close()
	return p.kill(ctx)
}
