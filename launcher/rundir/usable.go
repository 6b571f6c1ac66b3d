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
	if n := len(filepath.Join(d.Run, MonitorSocket)); n > maxSocketPath {
		return fmt.Errorf("run directory %s: sockets in it would have paths of %d characters, at most %d are possible", d.root.Run, n, maxSocketPath)
	}
	return nil
}

// Usable says why a VM's directories could not be made, without making any.
func (r Root) Usable(name string) error {
	if err := r.dir(name).checkPaths(); err != nil {
		return err
	}
	for _, dir := range []string{r.Run, r.State} {
		for { // the nearest that exists
			info, err := os.Stat(dir)
			if errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir) {
				dir = filepath.Dir(dir)
				continue
			}
			if err == nil && !info.IsDir() {
				err = &fs.PathError{Op: "mkdir", Path: dir, Err: unix.ENOTDIR}
			}
			if err == nil {
				err = unix.Access(dir, unix.W_OK|unix.X_OK)
				if err != nil {
					err = &fs.PathError{Op: "write to", Path: dir, Err: err}
				}
			}
			if err != nil {
				return err
			}
			break
		}
	}
	return nil
}
