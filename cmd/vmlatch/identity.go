package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/spec"
)

// becomeOwner makes root the user who owns the run directory, with that user's
// groups, for good: VMs of a service's user can be looked at and stopped by root, and
// what that user put into the directory has no power over root. say, if not nil, is
// told: that user, not root, must be able to read what a spec names.
func becomeOwner(root rundir.Root, say func(string, ...any)) error {
	if os.Geteuid() != 0 {
		return nil
	}
	uid, err := ownerOf(root.Run)
	if err != nil {
		return err
	}
	if uid == 0 {
		if other, err := ownerOf(root.State); err != nil || other == 0 {
			return err
		}
		// Records lead to specs, and specs to programs.
		return fmt.Errorf("state directory %s, which is not root's, next to root's run directory %s: %w", root.State,
			root.Run, rundir.ErrUnsafe)
	}
	gid, groups := uid, []int{uid}
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
			return fmt.Errorf("run directory %s: become its owner, user %d: %w", root.Run, uid, err)
		}
	}
	if say != nil {
		say("acting as %s, who owns %s", name, root.Run)
	}
	return nil
}

// ownerOf is who decides what lies at a path: the owner of it, or of the directory
// nearest to it, that is not root.
func ownerOf(path string) (uid int, err error) {
	for {
		var st unix.Stat_t
		switch err := unix.Lstat(path, &st); {
		case err == nil && st.Uid != 0:
			return int(st.Uid), nil
		case err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR):
			return 0, &fs.PathError{Op: "lstat", Path: path, Err: err}
		}
		up := filepath.Dir(path)
		if up == path {
			return 0, nil
		}
		path = up
	}
}

// ownCache keeps root from using, and from owning files in, a cache of another user.
func ownCache(h *spec.HostConfig) *spec.HostConfig {
	if h.CacheDir != "" && os.Geteuid() == 0 {
		if uid, err := ownerOf(h.CacheDir); err != nil || uid != 0 {
			h.CacheDir = "" // nothing is cached
		}
	}
	return h
}
