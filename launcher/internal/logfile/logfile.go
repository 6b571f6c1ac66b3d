// Package logfile cuts the oldest part of logs that are being written to.
package logfile

import (
	"golang.org/x/sys/unix"
)

// leastBlock is a multiple of which every file system moves or frees.
const leastBlock = 4096

// Cut removes the oldest bytes of a log but for the newest keep or somewhat fewer, and
// returns how many. What others append lands behind the end, wherever that is. File systems
// that cannot move the rest to the front keep a hole there, which takes no room
// (fallocate(2), FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_PUNCH_HOLE).
func Cut(fd int, keep int64) (dropped int64, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, err
	}
	begin := st.Size
	if at, err := unix.Seek(fd, 0, unix.SEEK_DATA); err == nil { // over the hole of an earlier cut
		begin = at
	}
	block := max(int64(st.Blksize), leastBlock)
	drop := (st.Size - keep + block - 1) / block * block
	if drop <= begin || drop >= st.Size {
		return 0, nil
	}
	err = unix.Fallocate(fd, unix.FALLOC_FL_COLLAPSE_RANGE, 0, drop)
	if err != nil { // tmpfs, btrfs
		err = unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, drop)
	}
	if err != nil {
		return 0, err
	}
	return drop - begin, nil
}
