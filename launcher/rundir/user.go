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

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/regular"
)

// ErrNoUser means that every id which is set aside for VMs is in use.
var ErrNoUser = errors.New("every id that is set aside for VMs is in use")

// ReserveUsers takes n ids for the VM's processes, out of count from first on, that no other VM
// here has and that are not busy. They are free again when the VM's run directory goes. What stays,
// and is owned by one, lies where none of them can reach it by a path.
func (d *Dir) ReserveUsers(ctx context.Context, n, first, count int, busy map[int]bool) (ids []int, err error) {
	unlock, err := d.root.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	names, err := d.root.names(d.root.Run)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		for _, id := range readUsers(d.root.dir(name).Path(userFile)) {
			busy[id] = true
		}
	}
	// VMs of another run directory, which start at the same moment, begin to look elsewhere.
	h := fnv.New32a()
	_, _ = h.Write([]byte(d.Run))
	text := ""
	for i := 0; i < count && len(ids) < n; i++ {
		if id := first + (int(h.Sum32())+i)%count; !busy[id] {
			ids, text = append(ids, id), text+fmt.Sprintln(id)
		}
	}
	if len(ids) < n {
		return nil, fmt.Errorf("%d to %d: %w", first, first+count-1, ErrNoUser)
	}
	f, err := os.OpenFile(d.Path(userFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = f.WriteString(text)
	return ids, errors.Join(err, f.Close())
}

// readUsers are the ids that a VM has reserved.
func readUsers(file string) (ids []int) {
	b, err := regular.ReadNoFollow(file, 1<<10)
	if err != nil {
		return nil
	}
	for text := range strings.FieldsSeq(string(b)) {
		if id, err := strconv.Atoi(text); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
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

// GiveTPM lets swtpm's user have the directory of the VM's TPM, and what is in it.
func (d *Dir) GiveTPM(dir *os.File, uid int) error {
	for _, name := range tpmFiles {
		err := unix.Fchownat(int(dir.Fd()), name, uid, uid, unix.AT_SYMLINK_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return &os.PathError{Op: "chown", Path: filepath.Join(dir.Name(), name), Err: err}
		}
	}
	return dir.Chown(uid, uid)
}
