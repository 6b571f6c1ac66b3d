package rundir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/vmlatch/vmlatch/firmware/regular"
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
	info, err := os.Stat(d.root.State)
	if err != nil {
		return err
	}
	if m := info.Mode(); m.Perm()&0o002 != 0 && m&os.ModeSticky == 0 {
		return fmt.Errorf("state directory %s: %w", d.root.State, ErrUnsafe)
	}
	if err := makeOwnDir(d.State); err != nil {
		return fmt.Errorf("state directory %w", err)
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
	return f, err
}
