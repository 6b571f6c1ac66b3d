package confine

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Rights of files by the version that brought them (Linux, include/uapi/linux/landlock.h).
const (
	readRights    = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	executeRights = readRights | unix.LANDLOCK_ACCESS_FS_EXECUTE
	deviceRights  = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | rightIoctl
	writeRights   = readRights | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR |
		unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG |
		unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_SYM |
		rightRefer | rightTruncate
	firstRights = 1<<13 - 1 // of version 1: execute to make symbolic links

	rightRefer    = 1 << 13 // 2: link or rename between directories
	rightTruncate = 1 << 14 // 3
	rightIoctl    = 1 << 15 // 5: of devices

	netRights = 1<<0 | 1<<1 // 4: bind and connect TCP
	scopes    = 1<<0 | 1<<1 // 6: abstract sockets and signals

	// fileOnly are the rights that a rule may have for what is not a directory.
	fileOnly = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE |
		unix.LANDLOCK_ACCESS_FS_WRITE_FILE | rightTruncate | rightIoctl
)

// handled are the rights that a version of the rules knows.
func handled(abi int) uint64 {
	rights := uint64(firstRights)
	for v, right := range map[int]uint64{2: rightRefer, 3: rightTruncate, 5: rightIoctl} {
		if abi >= v {
			rights |= right
		}
	}
	return rights
}

func rightsOf(a Access) uint64 {
	switch a {
	case Execute:
		return executeRights
	case Device:
		return deviceRights
	case Write:
		return writeRights | rightIoctl
	default:
		return readRights
	}
}

// ruleset is struct landlock_ruleset_attr; the kernel of an older version takes less of it.
type ruleset struct{ fs, net, scoped uint64 }

// restrict puts the calling thread, and what it becomes, under the kernel's rules: it can open a
// box's files alone, and use no TCP unless networks are for it; abstract sockets and signals end
// at the box. It needs no_new_privs. A file that is not there needs no rule.
func (b *Box) restrict() error {
	if b.Landlock == 0 {
		return nil
	}
	attr := ruleset{fs: handled(b.Landlock)}
	size := unsafe.Sizeof(attr.fs)
	if b.Landlock >= 4 {
		size += unsafe.Sizeof(attr.net)
		if !b.Networked {
			attr.net = netRights
		}
	}
	if b.Landlock >= 6 {
		size += unsafe.Sizeof(attr.scoped)
		attr.scoped = scopes
	}
	fd, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if errno != 0 {
		return os.NewSyscallError("landlock_create_ruleset", errno)
	}
	defer unix.Close(int(fd))
	for _, f := range b.Files {
		if err := addRule(int(fd), f, attr.fs); err != nil {
			return &os.PathError{Op: "landlock_add_rule", Path: f.Path, Err: err}
		}
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return os.NewSyscallError("landlock_restrict_self", errno)
	}
	return nil
}

func addRule(ruleset int, f File, known uint64) error {
	fd, err := openPath(f.Path)
	if err != nil || fd < 0 {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	rights := rightsOf(f.Access) & known
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		rights &= fileOnly
	}
	attr := unix.LandlockPathBeneathAttr{Allowed_access: rights, Parent_fd: int32(fd)}
	_, _, errno := unix.RawSyscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH,
		uintptr(unsafe.Pointer(&attr)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
