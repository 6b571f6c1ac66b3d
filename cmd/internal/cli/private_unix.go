//go:build unix

package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// checkPrivate refuses a directory that another user owns or can write to.
func (s *staged) checkPrivate(name string) error {
	info, err := s.dir.Stat(".")
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok:
		return errors.ErrUnsupported
	case int(st.Uid) != os.Geteuid() && st.Uid != 0:
		return notPrivate(name, fmt.Sprintf("it belongs to another user (uid %d)", st.Uid))
	case info.Mode().Perm()&0o022 != 0:
		return notPrivate(name, fmt.Sprintf("others can write to it (mode %04o)", info.Mode().Perm()))
	}
	return nil
}

func isOurs(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

func (s *staged) syncDir() error {
	d, err := s.dir.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
