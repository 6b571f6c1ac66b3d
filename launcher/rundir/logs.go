package rundir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/launcher/internal/logfile"
)

// logFiles are the files of one run in the state directory.
var logFiles = []string{ConsoleLog, EventsLog, QEMULog, recordFile}

// rotateLogs keeps the logs of the last run as the previous ones.
func (d *Dir) rotateLogs() error {
	previous := filepath.Join(d.State, previousDir)
	for _, f := range logFiles {
		if _, err := os.Lstat(filepath.Join(d.State, f)); err != nil {
			continue
		}
		if err := makeOwnDir(previous); err != nil {
			return err
		}
		if err := os.Rename(filepath.Join(d.State, f), filepath.Join(previous, f)); err != nil {
			return err
		}
	}
	return nil
}

// restoreLogs is the way back, when the run whose logs took their place came to
// nothing.
func (d *Dir) restoreLogs() {
	if ownDir(d.State) != nil {
		return // it does not exist, or is a link, perhaps into another user's files
	}
	previous := filepath.Join(d.State, previousDir)
	if _, err := os.Lstat(filepath.Join(d.State, recordFile)); err != nil && ownDir(previous) == nil {
		for _, f := range logFiles {
			_ = os.Rename(filepath.Join(previous, f), filepath.Join(d.State, f)) // not all exist
		}
		_ = os.Remove(previous)
	}
	_ = os.Remove(d.State) // fails while logs are kept
}

// removeLogs removes all logs, those of the run before too. A file that vmlatch did
// not make stays, and is an error.
func (d *Dir) removeLogs() error {
	for _, dir := range []string{filepath.Join(d.State, previousDir), d.State} {
		if err := ownDir(dir); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		for _, f := range append(logFiles[:len(logFiles):len(logFiles)], recordTemporary, failureFile,
			failureTemporary) {
			if err := os.Remove(filepath.Join(dir, f)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err := os.Remove(dir); err != nil {
			return err
		}
	}
	return nil
}

// makeState makes the VM's state directory. A link in its place is refused: QEMU
// would write where it points.
func (d *Dir) makeState() error {
	if err := os.MkdirAll(d.root.State, 0o700); err != nil {
		return err
	}
	dir, err := filepath.EvalSymlinks(d.root.State) // it may be kept elsewhere
	if err != nil {
		return err
	}
	if err := ownDir(dir); err != nil {
		return fmt.Errorf("state directory %w", err)
	}
	if err := makeOwnDir(d.State); err != nil {
		return fmt.Errorf("state directory %w", err)
	}
	return nil
}

// CreateLog makes a log for QEMU, which inherits it and writes behind its end. It is
// looked up in the VM's state directory, whatever its path leads to by now.
func (d *Dir) CreateLog(name string) (*os.File, error) {
	dir, err := d.openState()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.Openat(int(dir.Fd()), name,
		unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_APPEND|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &fs.PathError{Op: "create", Path: d.LogPath(name), Err: err}
	}
	return os.NewFile(uintptr(fd), d.LogPath(name)), nil
}

// openState opens the VM's state directory, and refuses one that others can write to.
func (d *Dir) openState() (*os.File, error) {
	fd, err := unix.Open(d.State, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: d.State, Err: err}
	}
	f := os.NewFile(uintptr(fd), d.State)
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && (int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0) {
		err = fmt.Errorf("state directory %s: %w", d.State, ErrUnsafe)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// boundLogs cuts the oldest part of a running VM's logs that exceed a bound, in bytes.
func (d *Dir) boundLogs(most int64) (err error) {
	if most <= 0 {
		return nil
	}
	for _, name := range []string{ConsoleLog, EventsLog, QEMULog} {
		var st unix.Stat_t
		if unix.Lstat(d.LogPath(name), &st) != nil || st.Blocks*512 <= most {
			continue
		}
		err = errors.Join(err, d.cutLog(name, most))
	}
	return err
}

// cutLog keeps the newest bytes of a log to which QEMU goes on to write.
func (d *Dir) cutLog(name string, keep int64) error {
	dir, err := d.openState()
	if err != nil {
		return err
	}
	defer dir.Close()
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: d.LogPath(name), Err: err}
	}
	defer unix.Close(fd)
	if _, err := logfile.Cut(fd, keep); err != nil {
		return &fs.PathError{Op: "cut", Path: d.LogPath(name), Err: err}
	}
	return nil
}

// LogPath is a file of the state directory.
func (d *Dir) LogPath(name string) string { return filepath.Join(d.State, name) }

// OpenLog opens a log to read it, of the last run or of the one before. Nothing was
// written to one that does not exist ([fs.ErrNotExist]).
func (d *Dir) OpenLog(name string, previous bool) (*os.File, error) {
	if previous {
		name = filepath.Join(previousDir, name)
	}
	f, err := regular.OpenNoFollow(d.LogPath(name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("log of %s: %w", d.Name, err)
	}
	if err == nil { // over the hole that a cut may have left; without one this is 0
		_, _ = unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	}
	return f, err
}
