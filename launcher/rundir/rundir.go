// Package rundir keeps a VM's run directory: its locks, its sockets, its launch
// record, and the truth about who is alive.
//
// Two locks tell the truth without process ids, which can be reused, and whose
// processes may never be reaped. vm.lock is a flock on a descriptor that QEMU
// inherits: it is held as long as QEMU lives, however it dies. launch.lock is
// held by the command that is launching. What a guest that has taken over QEMU
// does to its lock is not believed: once a launch has come so far, the record has
// the identities of QEMU and its helpers ([Identity]), which decide. From locks
// and record follows everything ([Entry.Status]): a VM that lives, but whose
// launch was never finished and is no longer under way, is abandoned, and the
// next command ends it. Of one that has ended, the next command removes the
// directory; [Root.Sweep] does both.
//
// Logs and the last record of a VM that ran are kept in a second place, the
// state directory, until the name is used again.
//
// Start with [Root.Create] to launch and [Root.List] to look. A [Dir] holds open files
// until [Dir.Close].
package rundir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
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
	SessionFile     = "broker.session" // that a broker gave for a launch of SEV or SEV-ES
	OwnerCertFile   = "broker.godh"
	MonitorSocket   = "monitor.sock"
	ConsoleSocket   = "console.sock"
	ScreenDir       = "screen" // what QEMU makes: the socket of its screen, and pictures of it
	VNCSocket       = "vnc.sock"
	AgentSocket     = "agent.sock"
	linksDir        = ".links"     // of all VMs: where another connects to a VM's network
	peersDir        = ".peers"     // the same, for each pair of peers
	ScreenFile      = "screen.png" // a picture of the guest's screen, for a moment
	SeedDir         = ".seed"      // what a seed for the guest is made of, for a moment
	consoleLock     = "console.lock"
	ownerLock       = "owner.lock"
	helperLock      = "helper.lock"
	keeperLock      = "logs.lock"
	VarsFile        = "vars.fd" // a firmware's variables: for one run, or kept next to the logs
	userFile        = "user"    // the id that its QEMU has
	recordFile      = "record.json"
	recordTemporary = ".record.json.new"
	globalLock      = ".lock"
)

// ShareSocket is the socket of a share's program.
func ShareSocket(id string) string { return id + ".sock" }

// Files of a state directory.
const (
	ConsoleLog  = "console.log"
	EventsLog   = "events.log"
	QEMULog     = "qemu.log"
	previousDir = "previous"
)

// MaxSocketPath is the longest path a unix socket can have, in bytes (unix(7), sun_path).
const MaxSocketPath = 107

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
	ErrUnsafe = errors.New("must be a directory of this user that no other user can write to")
)

type endedError struct{}

func (endedError) Error() string        { return "this VM has ended" }
func (endedError) Is(target error) bool { return target == ErrNotFound }

// Root is where VMs live: one directory a VM in each of both.
type Root struct {
	Run   string `json:"run"`   // locks, sockets, records; best on a tmpfs
	State string `json:"state"` // logs and last records; survives the VM
	// LogMax bounds each log of a running VM, in bytes; 0 means none. Sweeping cuts
	// what is older.
	LogMax int64 `json:"-"`
}

// Dir is one VM's directories, and which VM of the name it is about. The process that
// created or opened it also has its locks. It is for one goroutine at a time, but for
// Unlock and Close, which may come while another goroutine waits for the VM's end.
type Dir struct {
	Name  string
	Run   string
	State string

	root Root

	mu     sync.Mutex // for Close, Unlock and what may be waiting meanwhile
	vm     *os.File   // locked, in the process that created it
	launch *os.File   // locked, in the process that created or opened it
	// tpmMade is whether this launch has made the persistent TPM.
	tpmMade bool
	// kept are the files that this launch has made to stay.
	kept []string
	id   *lockFile // of the VM; see pin
	// process, wrapped and helpers are what is written down of its processes, at the same time.
	process *Identity
	wrapped bool
	helpers map[string]*Identity
	closed  bool
}

// CheckName says why a VM cannot have a name; nil if it can.
func CheckName(name string) error { return exchange.CheckName(name) }

// lockBound is how long the global lock is waited for. It is held for moments only,
// so that its holder is stopped or stuck if it takes longer.
const lockBound = 30 * time.Second

// lock takes the lock that guards creation and removal of directories. It is
// held for moments only. Where there is no run directory it is [fs.ErrNotExist].
func (r Root) lock(ctx context.Context) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, lockBound)
	defer cancel()
	if err := ownDir(r.Run); err != nil {
		return nil, fmt.Errorf("run directory %w", err)
	}
	f, err := flock.Open(ctx, filepath.Join(r.Run, globalLock), unix.O_CREAT, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

// held reports whether a process holds a lock file. The shared lock that it tries
// never stands in another prober's way, and a command that takes an existing lock waits
// for it (lockLaunch).
func held(name string) (bool, error) {
	l, err := openLock(name, "")
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer l.close()
	return l.held()
}

func (r Root) dir(name string) *Dir {
	return &Dir{Name: name, Run: filepath.Join(r.Run, name), State: filepath.Join(r.State, name), root: r}
}

// Create reserves a name and makes its directories; both locks are taken. Of
// several processes that do so at once exactly one succeeds, the others get
// ErrExists. What a dead VM of the name left is removed first, its logs are
// kept as the previous ones.
func (r Root) Create(ctx context.Context, name string) (*Dir, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	d := r.dir(name)
	if err := d.checkPaths(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(r.Run, 0o700); err != nil {
		return nil, err
	}
	unlock, err := r.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := r.clear(ctx, name); err != nil {
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
		if *f, err = flock.Try(filepath.Join(dir, name), unix.O_CREAT|unix.O_EXCL, unix.LOCK_EX); err != nil {
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

// VMLockFile is the locked file that QEMU inherits; nil after DropVMLock.
func (d *Dir) VMLockFile() *os.File { return d.vm }

// DropVMLock closes this process's copy of vm.lock, once QEMU has its own.
func (d *Dir) DropVMLock() {
	d.mu.Lock()
	defer d.mu.Unlock()
	letGo(&d.vm)
}

// letGo closes a lock's file, if it is open.
func letGo(f **os.File) {
	if *f != nil {
		_ = (*f).Close()
		*f = nil
	}
}

// Unlock lets other commands work on the VM: it lets go of both locks. The Dir is still
// about the same VM, whatever uses its name by then: Kill, WaitEnd, OpenProcess, Holders
// and Same go on.
func (d *Dir) Unlock() {
	d.mu.Lock()
	defer d.mu.Unlock()
	letGo(&d.vm)
	letGo(&d.launch)
}

// Close lets go of the locks, and of the VM: what asks for its processes is
// [fs.ErrClosed] from then on. The directories stay, and so do the paths of their
// files. It may be called more than once.
func (d *Dir) Close() {
	d.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.id != nil {
		d.id.close()
		d.id = nil
	}
	d.closed = true
}

// Root is where the VM is among others.
func (d *Dir) Root() Root { return d.root }

// Path is a file of the run directory.
func (d *Dir) Path(name string) string { return filepath.Join(d.Run, name) }

// LinkDir is the directory of the socket by which other VMs connect to the network of one. It is
// apart from the VM's own: a QEMU that connects to another VM reaches nothing else of that.
func (r Root) LinkDir(name string) string { return filepath.Join(r.Run, linksDir, name) }

// LinkSocket is where other VMs connect to the network of one.
func (r Root) LinkSocket(name string) string { return filepath.Join(r.LinkDir(name), "link.sock") }

// PeerDir is where the network of one VM takes frames from another's, and from no third one's:
// QEMUs do not look at who has sent them.
func (r Root) PeerDir(name, other string) string { return filepath.Join(r.Run, peersDir, name, other) }

// PeerSocket is the socket there, which QEMU makes.
func (r Root) PeerSocket(name, other string) string {
	return filepath.Join(r.PeerDir(name, other), "in")
}

// MakePeerDirs makes the directories of both ends, if they are not there.
func (r Root) MakePeerDirs(name, other string) error {
	for _, dir := range []string{
		filepath.Join(r.Run, peersDir), filepath.Dir(r.PeerDir(name, other)), filepath.Dir(r.PeerDir(other, name)),
		r.PeerDir(name, other), r.PeerDir(other, name),
	} {
		if err := makeOwnDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// MakeLinkDir makes the directory of a VM's link, if it is not there.
func (r Root) MakeLinkDir(name string) error {
	if err := makeOwnDir(filepath.Join(r.Run, linksDir)); err != nil {
		return err
	}
	return makeOwnDir(r.LinkDir(name))
}

// MakeLink makes room for this VM's own link, and returns the path of its socket.
func (d *Dir) MakeLink() (string, error) {
	if err := d.root.MakeLinkDir(d.Name); err != nil {
		return "", err
	}
	path := d.root.LinkSocket(d.Name)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a VM that was killed
		return "", err
	}
	return path, nil
}

// MakeScreen makes the directory in which QEMU makes files itself.
func (d *Dir) MakeScreen() error { return os.Mkdir(d.Path(ScreenDir), 0o700) }

// LockConsole takes the VM's console, which has one client at a time, until the file
// is closed. [ErrBusy] means that another client has it.
func (d *Dir) LockConsole() (*os.File, error) {
	f, err := flock.Try(d.Path(consoleLock), unix.O_CREAT, unix.LOCK_EX)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("%s: console: %w", d.Name, ErrBusy)
	}
	return f, err
}
