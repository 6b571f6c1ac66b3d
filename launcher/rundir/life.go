package rundir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Identity is a process that no other can be taken for: a pid is given anew, but not within a
// boot together with a time of start (proc(5), /proc/PID/stat, field 22).
type Identity struct {
	PID   int    `json:"pid"`
	Start int64  `json:"start"` // in ticks of the clock since the boot, whatever the time namespace
	Boot  string `json:"boot"`  // /proc/sys/kernel/random/boot_id
	PIDs  string `json:"pids"`  // the namespace of the pid (pid_namespaces(7))
}

// Identify reads the identity of a process.
func Identify(pid int) (*Identity, error) {
	start, err := startOf(pid)
	if err != nil {
		return nil, err
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	return &Identity{pid, start, boot, pidNamespace()}, nil
}

// pidNamespace is this process's; "" if that cannot be read.
var pidNamespace = sync.OnceValue(func() string {
	name, _ := os.Readlink("/proc/self/ns/pid")
	return name
})

var bootID = sync.OnceValues(func() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return string(bytes.TrimSpace(b)), err
})

// errEnded means that a process waits for nothing but being reaped.
var errEnded = errors.New("it has ended")

// statOf are the fields of /proc/PID/stat (proc(5)) from the third on: what stands before them is
// the process's name, which may hold anything.
func statOf(pid int) ([]string, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return nil, err
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 {
		return nil, fs.ErrInvalid
	}
	return fields, nil
}

func startOf(pid int) (int64, error) {
	fields, err := statOf(pid)
	if err != nil {
		return 0, err
	}
	if (fields[0] == "Z" || fields[0] == "X") && !threadLives(pid) {
		return 0, errEnded
	}
	start, err := strconv.ParseInt(fields[19], 10, 64)
	return start - timeOffset(), err
}

// ticks is how many there are in a second (USER_HZ, the same on every system that Go runs on).
const ticks = 100

// timeOffset is what this process's time namespace adds to the time since the boot, in ticks
// (time_namespaces(7)).
var timeOffset = sync.OnceValue(func() int64 {
	b, err := os.ReadFile("/proc/self/timens_offsets")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 3 && (f[0] == "boottime" || f[0] == strconv.Itoa(unix.CLOCK_BOOTTIME)) {
			seconds, _ := strconv.ParseInt(f[1], 10, 64)
			nanoseconds, _ := strconv.ParseInt(f[2], 10, 64)
			return seconds*ticks + nanoseconds/(1e9/ticks)
		}
	}
	return 0
})

// threadLives reports whether a process whose first thread has ended has another.
func threadLives(pid int) bool {
	files, _ := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task/*/stat"))
	for _, f := range files {
		b, err := os.ReadFile(f)
		state := bytes.TrimSpace(b[bytes.LastIndexByte(b, ')')+1:])
		if err == nil && len(state) > 0 && state[0] != 'Z' && state[0] != 'X' {
			return true
		}
	}
	return false
}

// Lives reports whether the process runs. In another namespace of pids, or where its state cannot
// be read, it is not known.
func (i *Identity) Lives() (lives, known bool) {
	if i == nil || i.PIDs != pidNamespace() {
		return false, false
	}
	boot, err := bootID()
	if err != nil {
		return false, false
	}
	if boot != i.Boot {
		return false, true
	}
	start, err := startOf(i.PID)
	switch {
	case errors.Is(err, errEnded):
		return false, true
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ESRCH):
		// It may only be hidden (proc(5), hidepid): the kernel itself knows.
		return false, errors.Is(unix.Kill(i.PID, 0), unix.ESRCH)
	case err != nil:
		return false, false
	}
	return start-i.Start <= 1 && i.Start-start <= 1, true // of offsets in parts of a tick
}

// open opens the process, if it lives.
func (i *Identity) open() (*Process, error) {
	if i == nil {
		return nil, ErrNotFound
	}
	if boot, err := bootID(); i.PIDs != pidNamespace() && (err != nil || boot == i.Boot) {
		return nil, errUnknownLife // the pid means another process here
	}
	p, err := openPID(i.PID)
	if err != nil {
		return nil, err
	}
	switch lives, known := i.Lives(); { // asked when the pid could no longer be given anew
	case !known:
		p.Close()
		return nil, errUnknownLife
	case !lives:
		p.Close()
		return nil, ErrNotFound
	}
	return p, nil
}

var errUnknownLife = errors.New("whether its process lives cannot be seen from here")

// openOr is open, or else finds the process by its pid and the lock: both are of no other.
func (i *Identity) openOr(id *lockFile) (*Process, error) {
	p, err := i.open()
	if errors.Is(err, ErrNotFound) || errors.Is(err, errUnknownLife) {
		if p, byLock := id.open(i.PID); byLock == nil {
			return p, nil
		}
	}
	return p, err
}

// judge decides whether a VM lives, by its lock and by the process that is written down. What the
// process itself could have done to the lock is not believed: one that let go of it lives all the
// same, and one that gave it away has ended all the same.
func (d *Dir) judge(e *Entry) {
	if e.Record == nil || e.Record.Process == nil {
		return
	}
	switch lives, known := e.Record.Process.Lives(); {
	case !known:
	case lives && !e.VMHeld:
		e.VMHeld, e.LostLock = true, true
	case e.Record.Wrapped: // its QEMU may live on
	case !lives && e.VMHeld && !e.LaunchHeld && !d.holdsLock(e.Record.Process.PID):
		e.VMHeld, e.Stranger = false, true
	}
}

// holdsLock reports whether a process has vm.lock. The one that is written down has it by itself,
// and no other process could have its pid and its lock: whatever else is wrong, it lives.
func (d *Dir) holdsLock(pid int) bool {
	l, err := openLock(d.Path(VMLock), d.Name)
	if err != nil {
		return false
	}
	defer l.close()
	st, err := l.stat()
	if err != nil {
		return true
	}
	found, err := holds(pid, &st)
	return found || err != nil
}

// WithSlot counts the VMs that live, by their recorded process, and have an encryption slot of a
// pool: one that has let go of its lease has its slot all the same.
func (r Root) WithSlot(pool string) (n int) {
	names, err := r.names(r.Run)
	if err != nil {
		return 0
	}
	for _, name := range names {
		rec, err := readRecord(r.dir(name).Path(recordFile))
		if err != nil || rec == nil || rec.Slot != pool {
			continue
		}
		if lives, _ := rec.Process.Lives(); lives {
			n++
		}
	}
	return n
}

// recorded is the process that was written down as the VM's when the Dir found it, nil if none was,
// and whether that may be another program than QEMU.
func (d *Dir) recorded() (i *Identity, wraps bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.process, d.wrapped
}

// recordedHelpers are the helpers that were written down, by their roles.
func (d *Dir) recordedHelpers() map[string]*Identity {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.helpers
}

func (d *Dir) setRecorded(r *Record) {
	if r == nil {
		r = &Record{}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.process, d.wrapped, d.helpers = r.Process, r.Wrapped, maps.Clone(r.Helpers)
}

// killRecorded ends the process that is written down. Others that hold its lock may have been given
// it, to have them killed: they are left alone. QEMU itself starts none (-sandbox spawn=deny).
func (d *Dir) killRecorded(ctx context.Context, id *lockFile, i *Identity) error {
	p, err := i.openOr(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.Close()
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if err := p.kill(ctx); err != nil {
		return fmt.Errorf("end %s (process %d): %w", d.Name, p.PID, err)
	}
	return nil
}
