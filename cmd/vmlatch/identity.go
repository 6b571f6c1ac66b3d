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

	"github.com/vmlatch/vmlatch/launcher"
)

// becomeOwner makes root the user who owns the run directory, with that user's
// groups, for good: VMs of a service's user can be looked at and stopped by root, and
// what that user put into the directory has no power over root. say, if not nil, is
// told: that user, not root, must be able to read what a spec names.
func becomeOwner(dir string, say func(string, ...any)) error {
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
	name := fmt.Sprintf("user %d", uid)
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		name = "user " + u.Username
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
	// What the VMs' memory may need to be pinned, only root can allow.
	_ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})
	for _, step := range []func() error{
		func() error { return syscall.Setgroups(groups) },
		func() error { return syscall.Setgid(gid) },
		func() error { return syscall.Setuid(uid) },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("run directory %s: become its owner, user %d: %w", dir, uid, err)
		}
	}
	if say != nil {
		say("acting as %s, who owns %s", name, dir)
	}
	return nil
}

// ownCache keeps root from using, and from owning files in, a cache of another user.
func ownCache(h *launcher.HostConfig) *launcher.HostConfig {
	var st unix.Stat_t
	if h.CacheDir != "" && os.Geteuid() == 0 && unix.Stat(h.CacheDir, &st) == nil && st.Uid != 0 {
		h.CacheDir = "" // nothing is cached
	}
	return h
}
