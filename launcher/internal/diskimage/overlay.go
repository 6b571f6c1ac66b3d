package diskimage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Layout of a new qcow2 image: its header, a table of one block of reference counts, that block,
// and a table (L1) without entries; a cluster each at least (docs/interop/qcow2.rst).
const (
	cluster       = 1 << clusterBits
	clusterBits   = 16
	refcountTable = 1 * cluster
	refcountBlock = 2 * cluster
	l1Table       = 3 * cluster
	l1Covers      = cluster / 8 * cluster // bytes of the disk that an entry stands for

	offClusterBits = 20 // u32
	offL1Size      = 36 // u32, in entries
	offL1          = 40 // u64
	offRefcount    = 48 // u64
	offRefcountLen = 56 // u32, in clusters
	offOrder       = 96 // u32: bits of a reference count, as a power of two
	sizeV3         = 104
)

// maxDisk is the largest disk of an overlay, in bytes: its reference counts fit one block.
const maxDisk = 64 << 40

// Overlay makes an empty qcow2 image of the size of its base, in a file without a name: it is
// gone with the last descriptor. What it lies on is for who opens it to say.
func Overlay(dir, base string) (*os.File, error) {
	info, err := Read(base)
	if err != nil {
		return nil, err
	}
	if info.Size <= 0 || info.Size > maxDisk {
		return nil, fmt.Errorf("%s: %w: a disk of %d bytes cannot have an overlay", base, ErrHeader, info.Size)
	}
	f, err := unnamed(dir)
	if err != nil {
		return nil, err
	}
	if err := writeEmpty(f, info.Size); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// unnamed makes a file without a name.
func unnamed(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.ENOENT) {
		return f, err
	}
	if f, err = os.CreateTemp(dir, ".overlay-"); err != nil { // a file system that has none
		return nil, err
	}
	return f, os.Remove(f.Name())
}

// writeEmpty writes an image without content.
func writeEmpty(f *os.File, size int64) error {
	be := binary.BigEndian
	entries := (size + l1Covers - 1) / l1Covers
	used := l1Table/cluster + (entries*8+cluster-1)/cluster // clusters
	head := make([]byte, l1Table)
	copy(head, "QFI\xfb")
	be.PutUint32(head[offVersion:], 3)
	be.PutUint32(head[offClusterBits:], clusterBits)
	be.PutUint64(head[offSize:], uint64(size))
	be.PutUint32(head[offL1Size:], uint32(entries))
	be.PutUint64(head[offL1:], l1Table)
	be.PutUint64(head[offRefcount:], refcountTable)
	be.PutUint32(head[offRefcountLen:], 1)
	be.PutUint32(head[offOrder:], 4)
	be.PutUint32(head[offHeaderLength:], sizeV3)
	be.PutUint64(head[refcountTable:], refcountBlock)
	for i := range used {
		be.PutUint16(head[refcountBlock+2*i:], 1)
	}
	if _, err := f.WriteAt(head, 0); err != nil {
		return err
	}
	return f.Truncate(used * cluster)
}
