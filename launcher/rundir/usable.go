package rundir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

func (d *Dir) checkPaths() error {
	if n := len(filepath.Join(d.Run, MonitorSocket)); n > MaxSocketPath {
		return fmt.Errorf("run directory %s: sockets in it would have paths of %d characters, at most %d are possible",
			d.root.Run, n, MaxSocketPath)
	}
	return nil
}

// Usable says why a VM's directories could not be made, without making any.
func (r Root) Usable(name string) error {
	if err := r.dir(name).checkPaths(); err != nil {
		return err
	}
	for _, dir := range []string{r.Run, r.State} {
		if err := writable(dir); err != nil {
			return err
		}
	}
	return nil
}

// writable says why a directory could not be made, or written to.
func writable(dir string) error {
	info, err := os.Stat(dir)
	for errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir) { // the nearest that exists
		dir = filepath.Dir(dir)
		info, err = os.Stat(dir)
	}
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return &fs.PathError{Op: "mkdir", Path: dir, Err: unix.ENOTDIR}
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return &fs.PathError{Op: "write to", Path: dir, Err: err}
	}
	return nil
}
