// Package slot leases encryption slots to VMs and counts them across processes.
//
// A processor has few slots: address-space IDs on AMD, key IDs on Intel. Each
// slot of a pool is a numbered file, and a lease is a flock on one of them. QEMU
// inherits the open file, so the kernel ends the lease when QEMU ends, however it
// does. There are only as many files as slots: no race can lease one more.
package slot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/internal/flock"
)

// Unlimited is the size of a pool that has an unknown number of slots.
const Unlimited = -1

// maxSlots bounds a pool: address-space IDs have 16 bits at most.
const maxSlots = 1 << 16

// Pool is a set of slots.
type Pool struct {
	Dir  string // where the leases of all pools lie
	Name string
	Size int // Unlimited if that is not known
	// InUse is how many slots the kernel says are taken, by guests of any program; -1
	// if it does not say.
	InUse int
}

// Lease is one slot, for as long as its file is open here or in a process that
// inherited it.
type Lease struct {
	Number int
	file   *os.File
}

// ErrNone is wrapped by errors about a pool without a free slot.
var ErrNone = errors.New("no free encryption slot")

// FullError is an [ErrNone] with its numbers.
type FullError struct {
	Pool   string
	Size   int
	Leased int // by VMs of this directory
	InUse  int // by guests of any program; -1 if unknown
}

func (e *FullError) Error() string {
	if e.InUse > e.Leased {
		return fmt.Sprintf("%v: pool %s has %d, and %d are in use, %d of them by VMs of this program",
			ErrNone, e.Pool, e.Size, e.InUse, e.Leased)
	}
	return fmt.Sprintf("%v: pool %s has %d, and %d are leased", ErrNone, e.Pool, e.Size, e.Leased)
}

// Unwrap returns ErrNone.
func (e *FullError) Unwrap() error { return ErrNone }

// lockBound is how long a pool's lock is waited for. It is held for moments only, so
// that its holder is stopped or stuck if it takes longer.
const lockBound = 30 * time.Second

// Take leases a free slot. If no slot is free it fails at once with an [ErrNone].
func (p Pool) Take() (*Lease, error) {
	unlock, err := p.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if p.Size >= 0 { // the limit may have been lowered since others took theirs
		leased, err := p.leased()
		if err != nil {
			return nil, err
		}
		if max(leased, p.InUse) >= p.Size {
			return nil, &FullError{p.Name, p.Size, leased, p.InUse}
		}
	}
	size := p.Size
	if size < 0 || size > maxSlots {
		size = maxSlots
	}
	for n := range size {
		switch f, err := flock.Try(p.path(n), unix.O_CREAT, unix.LOCK_EX); {
		case err == nil:
			return &Lease{n, f}, nil
		case !errors.Is(err, unix.EWOULDBLOCK):
			return nil, err
		}
	}
	return nil, &FullError{p.Name, size, size, p.InUse}
}

// Leased counts the leases.
func (p Pool) Leased() (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), lockBound)
	defer cancel()
	// A caller that only counts makes nothing: it may be another user, or may not write.
	lock, err := flock.Open(ctx, p.lockFile(), 0, unix.LOCK_EX)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // no slot was ever taken
	}
	if err != nil {
		return 0, err
	}
	defer lock.Close()
	return p.leased()
}

// Used is how many slots are taken: by leases, or as the kernel counts, which
// sees other programs' guests too.
func (p Pool) Used() (int, error) {
	n, err := p.Leased()
	return max(n, p.InUse), err
}

// leased is Leased under the pool's lock, without which a look at a free slot could
// be in the way of a process that wants to take it.
func (p Pool) leased() (int, error) {
	entries, err := os.ReadDir(p.dir())
	if err != nil {
		return 0, err
	}
	count := 0
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		f, err := flock.Try(filepath.Join(p.dir(), e.Name()), 0, unix.LOCK_SH)
		switch {
		case errors.Is(err, unix.EWOULDBLOCK):
			count++
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return 0, err
		case err == nil:
			_ = f.Close()
		}
	}
	return count, nil
}

// File is what QEMU must inherit.
func (l *Lease) File() *os.File { return l.file }

func (p Pool) dir() string { return filepath.Join(p.Dir, p.Name) }

func (p Pool) path(n int) string { return filepath.Join(p.dir(), strconv.Itoa(n)) }

func (p Pool) lockFile() string { return filepath.Join(p.dir(), ".lock") }

// lock makes the pool's directory and takes the lock under which slots are taken
// and counted, for moments only.
func (p Pool) lock() (unlock func(), err error) {
	if err := os.MkdirAll(p.dir(), 0o700); err != nil {
		return nil, err
	}
	for _, dir := range []string{p.Dir, p.dir()} {
		// Other programs would not count locks that lie behind a link.
		if info, err := os.Lstat(dir); err != nil || !info.IsDir() {
			return nil, &fs.PathError{Op: "lock", Path: dir, Err: unix.ENOTDIR}
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), lockBound)
	defer cancel()
	f, err := flock.Open(ctx, p.lockFile(), unix.O_CREAT, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}
