// Package rundir keeps a VM's run directory: its locks, its sockets, its launch
// record, and the truth about who is alive.
//
// Two locks tell the truth without process ids, which can be reused and whose
// owners nobody may be reaping. vm.lock is a flock on a descriptor that QEMU
// inherits: it is held as long as QEMU lives, however it dies. launch.lock is
// held by the command that is launching. From the two and the record follows
// everything ([Entry.Status]): a VM whose vm.lock is held but whose launch was
// never finished and is no longer under way is abandoned, and the next command
// ends it. A VM whose vm.lock is free has ended, and the next command removes
// its directory; [Root.Sweep] does both.
//
// Logs and the last record of a VM that ran are kept in a second place, the
// state directory, until the name is used again.
//
// Start with [Root.Create] to launch and [Root.List] to look.
package rundir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/sev/exchange"

	"github.com/vmlatch/vmlatch/launcher/internal/flock"
)

// Files of a run directory.
const (
	VMLock          = "vm.lock"
	LaunchLock      = "launch.lock"
	QMPSocket       = "qmp.sock"
	MonitorSocket   = "monitor.sock"
	ConsoleSocket   = "console.sock"
	consoleLock     = "console.lock"
	ownerLock       = "owner.lock"
	helperLock      = "helper.lock"
	VarsFile        = "vars.fd" // a firmware's variables, for one run
	recordFile      = "record.json"
	recordTemporary = ".record.json.new"
	globalLock      = ".lock"
)

// Files of a state directory.
const (
	ConsoleLog  = "console.log"
	EventsLog   = "events.log"
	QEMULog     = "qemu.log"
	previousDir = "previous"
)

// maxSocketPath is the longest path a unix socket can have (unix(7), sun_path).
const maxSocketPath = 107

var (
	// ErrExists means that a VM of the name is alive or being launched.
	ErrExists = errors.New("a VM of this name is running")
	// ErrNotFound means that no VM of the name is alive.
	ErrNotFound = errors.New("no such VM")
	// ErrEnded is an ErrNotFound about a VM whose record is still there.
	ErrEnded error = endedError{}
	// ErrBusy means that another command is working on the VM.
	ErrBusy = errors.New("another command is working on this VM")
	// ErrUnsafe means that others could change what vmlatch keeps.
	ErrUnsafe = errors.New("must be a directory of this user that nobody else can write to")
)

type endedError struct{}

func (endedError) Error() string        { return "this VM has ended" }
func (endedError) Is(target error) bool { return target == ErrNotFound }

// Root is where VMs live: one directory a VM in each of both.
type Root struct {
	Run   string `json:"run"`   // locks, sockets, records; best on a tmpfs
	State string `json:"state"` // logs and last records; survives the VM
}

// Dir is one VM's directories. The locks are open only in the process that
// created or opened it.
type Dir struct {
	Name   string
	Run    string
	State  string
	root   Root
	vm     *os.File
	launch *os.File
	id     *lockFile // of the VM; see pin
}

// lock takes the lock that guards creation and removal of directories. It is
// held for moments only. Where there is no run directory it is [fs.ErrNotExist].
func (r Root) lock() (unlock func(), err error) {
	if err := ownDir(r.Run); err != nil {
		return nil, fmt.Errorf("run directory %w", err)
	}
	f, err := flock.Open(filepath.Join(r.Run, globalLock), unix.O_CREAT, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

// held says whether somebody holds a lock file. The shared lock that it tries
// never stands in another prober's way, and nobody takes an existing lock file
// for writing except under the global lock.
func held(name string) (bool, error) {
	f, err := flock.Open(name, 0, unix.LOCK_SH|unix.LOCK_NB)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	}
	return false, f.Close()
}

func (r Root) dir(name string) *Dir {
	return &Dir{Name: name, Run: filepath.Join(r.Run, name), State: filepath.Join(r.State, name), root: r}
}

// Create reserves a name and makes its directories; both locks are taken. Of
// several processes that do so at once exactly one succeeds, the others get
// ErrExists. What a dead VM of the name left is removed first, its logs are
// kept as the previous ones.
func (r Root) Create(name string) (*Dir, error) {
	if err := exchange.CheckName(name); err != nil {
		return nil, err
	}
	d := r.dir(name)
	if err := d.checkPaths(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(r.Run, 0o700); err != nil {
		return nil, err
	}
	unlock, err := r.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if e, err := d.entry(); err == nil {
		if e.VMHeld || e.LaunchHeld {
			return nil, fmt.Errorf("%s: %w", name, ErrExists)
		}
		if err := d.remove(e); err != nil {
			return nil, err
		}
	} else if !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	if err := d.make(); err != nil {
		d.Close()
		_ = removeFiles(d.temporary())
		d.restoreLogs()
		return nil, err
	}
	return d, nil
}

// Names that a VM's directory has before and after its life.
func (d *Dir) temporary() string { return filepath.Join(d.root.Run, ".new-"+d.Name) }
func (d *Dir) discarded() string { return filepath.Join(d.root.Run, ".old-"+d.Name) }

// make builds the directory under another name, so that one without its locks
// is never seen.
func (d *Dir) make() (err error) {
	dir := d.temporary()
	if err := removeFiles(dir); err != nil { // of a Create that was killed
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for name, f := range map[string]**os.File{LaunchLock: &d.launch, VMLock: &d.vm} {
		if *f, err = flock.Open(filepath.Join(dir, name), unix.O_CREAT|unix.O_EXCL, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return err
		}
	}
	if d.id, err = openLock(filepath.Join(dir, VMLock), d.Name); err != nil {
		return err
	}
	if err := d.makeState(); err != nil {
		return err
	}
	if err := d.rotateLogs(); err != nil {
		return err
	}
	return os.Rename(dir, d.Run)
}

// VMLockFile is the locked file that QEMU inherits.
func (d *Dir) VMLockFile() *os.File { return d.vm }

// DropVMLock closes this process's copy of vm.lock, once QEMU has its own.
func (d *Dir) DropVMLock() {
	if d.vm != nil {
		_ = d.vm.Close()
		d.vm = nil
	}
}

// Close lets go of the locks; the directories stay.
func (d *Dir) Close() {
	d.DropVMLock()
	if d.launch != nil {
		_ = d.launch.Close()
		d.launch = nil
	}
}

// Path is a file of the run directory.
func (d *Dir) Path(name string) string { return filepath.Join(d.Run, name) }

// LockConsole takes the VM's console, which has one client at a time. Who has it
// keeps it until the file is closed.
func (d *Dir) LockConsole() (*os.File, error) {
	f, err := flock.Open(d.Path(consoleLock), unix.O_CREAT, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("%s: console: %w", d.Name, ErrBusy)
	}
	return f, err
}

// Open takes launch.lock of a VM that is alive, for a command that changes it.
// A command already at work is waited for, up to the given time.
func (r Root) Open(ctx context.Context, name string, wait time.Duration) (*Dir, *Record, error) {
	if err := exchange.CheckName(name); err != nil {
		return nil, nil, err
	}
	d := r.dir(name)
	for deadline := time.Now().Add(wait); ; {
		rec, err := r.tryOpen(d)
		if !errors.Is(err, ErrBusy) || time.Now().After(deadline) {
			return d, rec, err
		}
		time.Sleep(10 * time.Millisecond) // flock has no timeout
	}
}

// tryOpen looks and locks under the global lock, so that what it saw is true.
func (r Root) tryOpen(d *Dir) (*Record, error) {
	unlock, err := r.lock()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, d.notAlive()
	}
	if err != nil {
		return nil, err
	}
	defer unlock()
	e, err := d.entry()
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, d.notAlive()
	case err != nil:
		return nil, err
	case e.LaunchHeld && e.VMHeld:
		return nil, fmt.Errorf("%s: %w", d.Name, ErrBusy)
	case e.Status() != Alive:
		return nil, d.notAlive()
	}
	d.launch, err = flock.Open(d.Path(LaunchLock), 0, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("%s: %w", d.Name, ErrBusy)
	}
	if err == nil {
		if _, err = d.pin(); err != nil {
			d.Close()
		}
	}
	return e.Record, err
}

// CheckName is an error unless a VM can have the name.
func CheckName(name string) error { return exchange.CheckName(name) }
