package rundir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrVars means that variables of firmware would be lost.
var ErrVars = errors.New("the variables of its firmware would be lost")

// newSuffix ends the name of a file that is not whole yet.
const newSuffix = ".new"

// maxVars bounds a file of variables, in bytes.
const maxVars = 64 << 20

// KeepFile copies a file into the VM's state directory, where it stays, unless it is there already:
// whole, or not at all. A launch that fails before the guest ran removes what it has made.
func (d *Dir) KeepFile(from, name string) error {
	dir, err := d.openState()
	if err != nil {
		return err
	}
	defer dir.Close()
	at := int(dir.Fd())
	var st unix.Stat_t
	switch err := unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == nil && (st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0):
		return fmt.Errorf("%s: %w", filepath.Join(d.State, name), ErrUnsafe)
	case err == nil:
		return nil
	case !errors.Is(err, unix.ENOENT):
		return &fs.PathError{Op: "stat", Path: filepath.Join(d.State, name), Err: err}
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	temporary := name + newSuffix
	if err := unix.Unlinkat(at, temporary, 0); err != nil &&
		!errors.Is(err, unix.ENOENT) { // of a launch that was killed
		return &fs.PathError{Op: "unlink", Path: temporary, Err: err}
	}
	fd, err := unix.Openat(
		at,
		temporary,
		unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC,
		0o600,
	)
	if err != nil {
		return &fs.PathError{Op: "create", Path: filepath.Join(d.State, temporary), Err: err}
	}
	out := os.NewFile(uintptr(fd), filepath.Join(d.State, temporary))
	n, err := io.Copy(out, io.LimitReader(in, maxVars+1))
	if err == nil && n > maxVars {
		err = fmt.Errorf("%s: is not a file of variables: it is too large", from)
	}
	if err == nil {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err == nil {
		err = unix.Renameat(at, temporary, at, name)
	}
	if err != nil {
		_ = unix.Unlinkat(at, temporary, 0)
		return err
	}
	d.kept = append(d.kept, name)
	return dir.Sync()
}

// HasVars reports whether variables of a firmware are kept for a VM.
func (r Root) HasVars(name string) (bool, error) {
	_, err := os.Lstat(filepath.Join(r.dir(name).State, VarsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// ForgetVars removes the variables of a VM's firmware, which does not run: boot entries, keys and
// lists of what Secure Boot refuses begin anew.
func (r Root) ForgetVars(ctx context.Context, name string) error {
	d, unlock, err := r.idle(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	if err := ownDir(d.State); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: %w", name, ErrNotFound)
		}
		return err
	}
	err = os.Remove(filepath.Join(d.State, VarsFile))
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%s: %w with variables of firmware", name, ErrNotFound)
	}
	_ = os.Remove(d.State) // fails while logs are kept
	return err
}
