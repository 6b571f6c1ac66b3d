package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// becomeOwner makes root the user who owns the run directory, with that user's
// groups, for good: VMs of a service's user can be looked at and stopped by root, and
// what that user put into the directory has no power over root.
func becomeOwner(dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return &fs.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Uid == 0 {
		return nil // it is root's own, or the run directory's check refuses it
	}
	uid, gid, groups := int(st.Uid), int(st.Gid), []int{int(st.Gid)}
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		if gid, err = strconv.Atoi(u.Gid); err != nil {
			return err
		}
		groups = []int{gid}
		ids, _ := u.GroupIds() // without them some devices cannot be opened, which says so itself
		for _, id := range ids {
			if n, err := strconv.Atoi(id); err == nil && n != gid {
				groups = append(groups, n)
			}
		}
	}
	for _, step := range []func() error{
		func() error { return syscall.Setgroups(groups) },
		func() error { return syscall.Setgid(gid) },
		func() error { return syscall.Setuid(uid) },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("run directory %s: become its owner, user %d: %w", dir, uid, err)
		}
	}
	return nil
}
