package rundir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/regular"
)

// tpmDir is the directory of a TPM's state: in the state directory, where it outlives the VM, or
// in the run directory. It has the other name until it is whole.
const (
	tpmDir = "tpm"
	tpmNew = "tpm.new"
	tpmCA  = ".tpm-ca" // of all TPMs of a state directory, which no VM has as its name
)

// tpmFiles are all files that swtpm makes in it, and certificates.
var tpmFiles = []string{
	TPMStateFile, EKCertRSA, EKCertECC, SRKPublic,
	"tpm2-00.volatilestate", "TMP2-00.permall", "TMP2-00.volatilestate", ".lock",
}

// Files of a TPM for others to read: certificates of its endorsement keys, and the public part of
// its storage root key (TPM2B_PUBLIC).
const (
	EKCertRSA = "ek-rsa.pem"
	EKCertECC = "ek-p256.pem"
	SRKPublic = "srk.pub"
)

// keptTPM are the files that make a copy of a TPM.
var keptTPM = []string{TPMStateFile, EKCertRSA, EKCertECC, SRKPublic}

// maxTPM bounds each of them, in bytes.
const maxTPM = 1 << 20

// TPMStateFile is the file that holds a TPM's seeds, keys and counters.
const TPMStateFile = "tpm2-00.permall"

// ErrTPM means that the state of a TPM would be lost.
var ErrTPM = errors.New("the keys and counters of its TPM would be lost")

// TPMPath is the directory of a VM's persistent TPM.
func (d *Dir) TPMPath() string { return filepath.Join(d.State, tpmDir) }

// TPM is the directory of a VM's TPM, which is gone with the VM if it is not persistent.
func (r Root) TPM(name string, persistent bool) string {
	d := r.dir(name)
	if persistent {
		return d.TPMPath()
	}
	return filepath.Join(d.Run, tpmDir)
}

// TPMAuthority is the directory of the CA of this host's TPMs.
func (r Root) TPMAuthority() string { return filepath.Join(r.State, tpmCA) }

// MakeTPM makes the VM's TPM, if it has none: fill makes its state in a directory. A launch that
// fails before the guest ran removes what it has made.
func (d *Dir) MakeTPM(ctx context.Context, persistent bool, fill func(dir *os.File) error) error {
	parent, err := d.openTPMParent(persistent)
	if err != nil {
		return err
	}
	defer parent.Close()
	at := int(parent.Fd())
	var st unix.Stat_t
	switch err := unix.Fstatat(at, tpmDir+"/"+TPMStateFile, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == nil:
		return nil
	case !errors.Is(err, unix.ENOENT):
		return &fs.PathError{Op: "stat", Path: parent.Name(), Err: err}
	}
	if unix.Fstatat(at, tpmDir, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("the TPM's place, %s, %w", filepath.Join(parent.Name(), tpmDir), ErrUnsafe)
	}
	unlock, err := d.root.lock(ctx) // the CA is that of all
	if err != nil {
		return err
	}
	defer unlock()
	return d.fillTPM(parent, persistent, fill)
}

// fillTPM makes a TPM's directory in another. The caller holds the global lock.
func (d *Dir) fillTPM(parent *os.File, persistent bool, fill func(dir *os.File) error) error {
	at := int(parent.Fd())
	if err := removeTPMs(parent.Name()); err != nil { // of a launch that was killed
		return err
	}
	if err := unix.Mkdirat(at, tpmNew, 0o700); err != nil {
		return &fs.PathError{Op: "mkdir", Path: parent.Name(), Err: err}
	}
	d.tpmMade = persistent
	dir, err := openPrivate(parent, tpmNew)
	if err != nil {
		return err
	}
	defer dir.Close()
	err = fill(dir)
	if err == nil && persistent {
		err = syncFiles(dir)
	}
	if err != nil {
		return errors.Join(err, removeTPM(filepath.Join(parent.Name(), tpmNew)))
	}
	if err := unix.Renameat(at, tpmNew, at, tpmDir); err != nil {
		return &fs.PathError{Op: "rename", Path: parent.Name(), Err: err}
	}
	return parent.Sync()
}

// syncFiles writes a directory and its files to the disk: what is named must be whole after a loss
// of power.
func syncFiles(dir *os.File) error {
	for _, name := range tpmFiles {
		f, err := os.OpenFile(filepath.Join(dir.Name(), name), os.O_RDONLY|unix.O_NOFOLLOW, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return dir.Sync()
}

func (d *Dir) openTPMParent(persistent bool) (*os.File, error) {
	if persistent {
		return d.openState()
	}
	return os.Open(d.Run)
}

// OpenTPM opens the directory of the VM's TPM. A link in its place, or a directory that others can
// read or write, is refused.
func (d *Dir) OpenTPM(persistent bool) (*os.File, error) {
	parent, err := d.openTPMParent(persistent)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	return openPrivate(parent, tpmDir)
}

// openPrivate opens a directory that no other user may read or write. That of root may be swtpm's
// user's, see [Dir.GiveTPM].
func openPrivate(parent *os.File, name string) (*os.File, error) {
	path := filepath.Join(parent.Name(), name)
	fd, err := unix.Openat(int(parent.Fd()), name, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && (!mayOwn(int(st.Uid)) || st.Mode&0o077 != 0) {
		err = fmt.Errorf(
			"the directory of the TPM, %s, %w, or read (chmod 700; vmlatch tpm import restores a backup)",
			path,
			ErrUnsafe,
		)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func mayOwn(uid int) bool { return uid == os.Geteuid() || os.Geteuid() == 0 }

// TPMState is the file of a VM's persistent TPM.
func (r Root) TPMState(name string) string { return filepath.Join(r.dir(name).TPMPath(), TPMStateFile) }

// TPMKey is the public part of the storage root key of a VM's persistent TPM, as the TPM was made
// with it. The error wraps [fs.ErrNotExist] if it was not kept.
func (r Root) TPMKey(name string) ([]byte, error) {
	return regular.ReadNoFollow(filepath.Join(r.dir(name).TPMPath(), SRKPublic), maxTPM)
}

// EachTPMFile calls see for each file of the TPM of a VM that does not run: state, certificates.
func (r Root) EachTPMFile(ctx context.Context, name string, see func(file string, b []byte) error) error {
	d, unlock, err := r.idle(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	if has, err := r.HasTPM(name); err != nil || !has {
		return errors.Join(err, fmt.Errorf("%s: %w with a TPM", name, ErrNotFound))
	}
	for _, f := range keptTPM {
		b, err := regular.ReadNoFollow(filepath.Join(d.TPMPath(), f), maxTPM)
		if errors.Is(err, fs.ErrNotExist) && f != TPMStateFile {
			continue
		}
		if err == nil {
			err = see(f, b)
		}
		clear(b)
		if err != nil {
			return err
		}
	}
	return nil
}

// ImportTPM gives a VM that does not run, and has no TPM, a copy of one: its files, which check may
// refuse before they count.
func (r Root) ImportTPM(ctx context.Context, name string, files map[string][]byte, check func(*os.File) error) error {
	d, unlock, err := r.idle(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	for f, b := range files {
		if !slices.Contains(keptTPM, f) || len(b) > maxTPM {
			return fmt.Errorf("%q is not a file of a TPM, or too large", f)
		}
	}
	if files[TPMStateFile] == nil {
		return fmt.Errorf("there is no file %s", TPMStateFile)
	}
	if _, err := os.Lstat(r.TPMState(name)); err == nil {
		return fmt.Errorf("%s has a TPM: %w", name, ErrTPM)
	}
	if err := d.makeState(); err != nil {
		return err
	}
	parent, err := d.openState()
	if err != nil {
		return err
	}
	defer parent.Close()
	err = d.fillTPM(parent, true, func(dir *os.File) error {
		for f, b := range files {
			if err := os.WriteFile(filepath.Join(dir.Name(), f), b, 0o600); err != nil {
				return err
			}
		}
		return check(dir)
	})
	if err != nil {
		_ = os.Remove(d.State) // fails while logs are kept
	}
	return err
}

// idle takes the global lock for a VM that does not run, and clears away what is left of it.
func (r Root) idle(ctx context.Context, name string) (*Dir, func(), error) {
	if err := CheckName(name); err != nil {
		return nil, nil, err
	}
	unlock, err := r.lock(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		unlock, err = func() {}, nil // nothing is started without one
	}
	if err != nil {
		return nil, nil, err
	}
	if err := r.clear(ctx, name); err != nil {
		unlock()
		return nil, nil, err
	}
	return r.dir(name), unlock, nil
}

// HasTPM reports whether a VM has a persistent TPM, whether it runs or not.
func (r Root) HasTPM(name string) (bool, error) {
	_, err := os.Lstat(r.dir(name).TPMPath())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// ForgetTPM removes the state of a TPM, which no VM uses. What was sealed to it is lost.
func (r Root) ForgetTPM(ctx context.Context, name string) error {
	d, unlock, err := r.idle(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	if err := removeTPM(filepath.Join(d.State, tpmNew)); err != nil { // of a command that was killed
		return err
	}
	if err := dirOf(d.TPMPath(), mayOwn); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			_ = os.Remove(d.State)
			return fmt.Errorf("%s: %w with a TPM", name, ErrNotFound)
		}
		return err
	}
	if err := removeTPM(d.TPMPath()); err != nil {
		return err
	}
	_ = os.Remove(d.State) // fails while logs are kept
	return nil
}

// removeTPMs removes the TPM of a directory, and one that is not whole.
func removeTPMs(parent string) error {
	return errors.Join(removeTPM(filepath.Join(parent, tpmNew)), removeTPM(filepath.Join(parent, tpmDir)))
}

// removeTPM removes a TPM's directory. One that holds anything else stays, and is an error.
func removeTPM(dir string) error {
	info, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || !info.IsDir() {
		return errors.Join(err, os.Remove(dir)) // and leave alone what a link points to
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries { // before anything is lost
		if !slices.Contains(tpmFiles, e.Name()) {
			return fmt.Errorf("%s: %s is not a file of a TPM: nothing was removed; if you need none of it, remove the"+
				" directory", dir, e.Name())
		}
	}
	for _, f := range tpmFiles {
		if err := os.Remove(filepath.Join(dir, f)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return os.Remove(dir)
}
