package confine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// base is where the new root is put together: a directory that every system has. What lies in it is
// hidden from then on.
const base = "/tmp"

// enter makes a file system of a box's files alone the process's root. It is called in a mount
// namespace of its own.
func (b *Box) enter() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil { // what follows is ours alone
		return os.NewSyscallError("mount", err)
	}
	files := b.sorted()
	open := make([]int, len(files)) // while its user is the launcher's, and before base is hidden
	for i, f := range files {
		var err error
		if open[i], err = openPath(f.Path); err != nil {
			return err
		}
	}
	if err := b.become(); err != nil { // a user whom the namespace does not know can make no files
		return err
	}
	if err := unix.Mount("vmlatch", base, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=256k"); err != nil {
		return os.NewSyscallError("mount tmpfs", err)
	}
	for i, f := range files {
		if open[i] < 0 {
			continue
		}
		var err error
		if f.Path != proc || !b.Has(PID) || ownProc() != nil {
			err = f.bind(open[i])
		}
		_ = unix.Close(open[i])
		if err != nil {
			return fmt.Errorf("show %s: %w", f.Path, err)
		}
	}
	if err := unix.Chdir(base); err != nil {
		return os.NewSyscallError("chdir", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil { // the old root lies on the new one then
		return os.NewSyscallError("pivot_root", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return os.NewSyscallError("umount", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return os.NewSyscallError("chdir", err)
	}
	return setMount("/", unix.MOUNT_ATTR_RDONLY, 0)
}

// proc shows processes.
const proc = "/proc"

// ownProc shows the processes of this namespace alone. The kernel refuses that where what is
// mounted is not whole, as in containers and services; then the host's is shown.
func ownProc() error {
	if err := os.Mkdir(base+proc, 0o555); err != nil {
		return err
	}
	return unix.Mount("proc", base+proc, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY, "")
}

// openPath opens a file for its place alone; -1 for what is not there, or not for this user: the
// process would not find it either.
func openPath(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	switch {
	case oneOf(err, unix.ENOENT, unix.EACCES, unix.ENOTDIR, unix.ENAMETOOLONG, unix.ELOOP) != 0:
		return -1, nil
	case err != nil:
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// bind shows a file, which is open, in the new root at its own path.
func (f File) bind(fd int) error {
	to := filepath.Join(base, f.Path)
	readOnly := f.Access == Read || f.Access == Execute
	if _, err := os.Lstat(to); err == nil && readOnly {
		return nil // a directory that is shown already has it
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	var err error
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = os.Mkdir(to, 0o755)
	} else {
		err = unix.Mknod(to, unix.S_IFREG|0o644, 0)
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	from := fmt.Sprintf("/proc/self/fd/%d", fd)
	if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	var attr uint64 = unix.MOUNT_ATTR_NOSUID
	if f.Access != Write { // a device is written to all the same, but its mode and owner stay
		attr |= unix.MOUNT_ATTR_RDONLY
	}
	return setMount(to, attr, unix.AT_RECURSIVE)
}

func setMount(path string, attr uint64, flags uint) error {
	err := unix.MountSetattr(unix.AT_FDCWD, path, flags, &unix.MountAttr{Attr_set: attr})
	return os.NewSyscallError("mount_setattr", err)
}
