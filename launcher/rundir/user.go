package rundir

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/regular"
)

// ErrNoUser means that every id which is set aside for VMs is in use.
var ErrNoUser = errors.New("every id that is set aside for VMs is in use")

// ReserveUser takes an id for the VM's QEMU, out of count from first on: one that no other VM here
// has, and that is not busy. It is free again when the VM's run directory goes; no file that stays
// is owned by it.
func (d *Dir) ReserveUser(ctx context.Context, first, count int, busy map[int]bool) (int, error) {
	unlock, err := d.root.lock(ctx)
	if err != nil {
		return 0, err
	}
	defer unlock()
	names, err := d.root.names(d.root.Run)
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		if id := readUser(d.root.dir(name).Path(userFile)); id > 0 {
			busy[id] = true
		}
	}
	// VMs of another run directory, which start at the same moment, begin to look elsewhere.
	h := fnv.New32a()
	_, _ = h.Write([]byte(d.Run))
	for i := range count {
		id := first + (int(h.Sum32())+i)%count
		if busy[id] {
			continue
		}
		f, err := os.OpenFile(d.Path(userFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return 0, err
		}
		_, err = fmt.Fprintln(f, id)
		return id, errors.Join(err, f.Close())
	}
	return 0, fmt.Errorf("%d to %d: %w", first, first+count-1, ErrNoUser)
}

// readUser is the id that a VM has reserved; 0 for none.
func readUser(file string) int {
	b, err := regular.ReadNoFollow(file, 32)
	if err != nil {
		return 0
	}
	id, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return id
}

// GiveTo lets a VM's user have what QEMU itself opens, or makes, in the run directory: that of its
// screen, and the sockets of helpers.
func (d *Dir) GiveTo(uid int) error {
	names := []string{d.Path(ScreenDir)}
	sockets, _ := filepath.Glob(d.Path(ShareSocket("share*")))
	for _, name := range append(names, sockets...) {
		if err := os.Lchown(name, uid, uid); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
