package rundir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/launcher/cgroup"
)

// runFiles are all files that a run directory can have; nothing else is ever
// removed from one.
var runFiles = []string{
	VMLock, LaunchLock, consoleLock, ownerLock, helperLock, keeperLock,
	"tpm.lock", // of earlier versions
	QMPSocket, MonitorSocket, ConsoleSocket, AgentSocket, SessionFile, OwnerCertFile, VarsFile,
	userFile, recordFile, recordTemporary,
}

// removeFiles removes a run directory with the files that vmlatch makes. One
// that holds anything else stays, and is an error.
func removeFiles(dir string) error {
	if info, err := os.Lstat(dir); err == nil && !info.IsDir() {
		return os.Remove(dir) // and leave alone what a link points to
	}
	for _, f := range runFiles {
		if err := os.Remove(filepath.Join(dir, f)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, sub := range []string{SeedDir, ScreenDir, tpmDir, tpmNew} {
		if err := removeTree(filepath.Join(dir, sub)); err != nil {
			return err
		}
	}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if ok, _ := filepath.Match(ShareSocket("share*"), e.Name()); !ok {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Discard removes every trace of a launch that failed. Only the creator calls it.
func (d *Dir) Discard() error { return d.discard(d.purge) }

// DiscardRun does the same for a guest that has run: what it said is kept.
func (d *Dir) DiscardRun() error { return d.discard(d.removeRun) }

func (d *Dir) discard(remove func() error) error {
	defer d.Close()
	unlock, err := d.root.lock(context.Background())
	if err != nil {
		return err
	}
	defer unlock()
	return remove()
}

// purge removes the run directory and this run's logs.
func (d *Dir) purge() error {
	err := d.removeRun()
	if ownDir(d.State) != nil {
		return err
	}
	for _, f := range append(logFiles[:len(logFiles):len(logFiles)], recordTemporary) {
		if e := os.Remove(d.LogPath(f)); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	if d.tpmMade { // nothing was ever sealed to it
		err = errors.Join(err, removeTPMs(d.State))
	}
	for _, f := range d.kept { // no guest has written it
		if e := os.Remove(filepath.Join(d.State, f)); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	d.restoreLogs()
	return err
}

// Ungroup removes the control group that was made for a VM, if it has ended.
func (d *Dir) Ungroup() {
	if rec, err := readRecord(d.Path(recordFile)); err == nil && rec != nil && rec.Group != "" {
		cgroup.Remove(rec.Group)
	}
}

// removeRun takes the directory out of sight before it empties it: if it is
// interrupted, the VM is gone all the same.
func (d *Dir) removeRun() error {
	d.Ungroup()
	if err := os.Rename(d.Run, d.discarded()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return errors.Join(removeFiles(d.discarded()), d.removeLinks())
}

// removeLinks removes the sockets by which other VMs reach this one's networks, and whatever QEMU
// has made next to them. Their directories stay: running VMs look at them.
func (d *Dir) removeLinks() error {
	err := os.Remove(d.root.LinkSocket(d.Name))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	dirs, _ := filepath.Glob(d.root.PeerDir(d.Name, "*"))
	for _, dir := range dirs {
		err = errors.Join(err, emptyTree(dir))
	}
	return err
}

// remove clears away a VM that has ended: the record of one that was finished
// with on purpose is kept next to its logs, every trace of another goes. What it has
// left running is ended first: without the directory it could not be found.
func (d *Dir) remove(ctx context.Context, e *Entry) error {
	if err := d.killOthers(ctx); err != nil {
		return err
	}
	if e.Record == nil || !e.Record.Settled {
		return d.purge()
	}
	if err := d.makeState(); err != nil {
		return err
	}
	b, err := regular.ReadNoFollow(d.Path(recordFile), maxRecord)
	if err == nil {
		err = replaceFile(d.LogPath(recordTemporary), d.LogPath(recordFile), b)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return d.removeRun()
}

// clear removes what a dead VM left in the run directory, if there was one of the name.
// The caller holds the global lock. A VM that is not dead is ErrExists.
func (r Root) clear(ctx context.Context, name string) error {
	d := r.dir(name)
	e, err := d.entry()
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return err
	case e.VMHeld || e.LaunchHeld:
		return fmt.Errorf("%s: %w", name, ErrExists)
	}
	if err := d.lockLaunch(ctx); err != nil {
		return err
	}
	defer d.Close()
	if err := d.pin(); err != nil { // with what it has written down of its helpers
		return err
	}
	return d.remove(ctx, e)
}
