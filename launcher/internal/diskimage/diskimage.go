// Package diskimage reads of a disk image which format it has, and which other files its
// header names: QEMU would open those too, and show them to the guest.
//
// Source: QEMU, docs/interop/qcow2.rst; block/vmdk.c, vdi.c, vhdx.c, vpc.c, qed.c,
// parallels.c for signatures.
package diskimage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Info is what an image's header says.
type Info struct {
	Format        string // raw, qcow2, or one that QEMU calls so
	Backing       string // file that the image is an overlay of, as the header names it
	BackingFormat string // its format, if the header says
	Size          int64  // that a guest sees, in bytes; of formats other than raw and qcow2 0
	DataFile      string // file that holds the image's data; "?" if the header does not say
	// Unusable says why QEMU would not open it, or not for writing; "" if it would.
	Unusable string
	Corrupt  bool // marked so: QEMU opens it for reading only
}

// ErrHeader is wrapped by errors about a header that is broken.
var ErrHeader = errors.New("damaged image header")

// Limits of a qcow2 header.
const (
	maxHeader = 64 << 10
	maxName   = 1023 // QEMU's own
)

// Read looks at an image or at a block device. It does not wait, and reads at most 64 KiB.
func Read(name string) (*Info, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	head := make([]byte, maxHeader)
	n, err := io.ReadFull(io.NewSectionReader(f, 0, maxHeader), head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	head = head[:n]
	if info, err := Parse(head); err != nil || info.Format != "raw" {
		return info, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil { // a pipe
		return &Info{Format: "raw"}, nil
	}
	tail := make([]byte, 8) // a fixed VHD has its header at the end
	if _, err := f.ReadAt(tail, max(size-512, 0)); err == nil && string(tail) == "conectix" {
		return &Info{Format: "vpc"}, nil
	}
	return &Info{Format: "raw", Size: size}, nil
}

// signatures tell formats apart, at an offset each.
var signatures = []struct {
	offset        int
	magic, format string
}{
	{0, "KDMV", "vmdk"},
	{0, "COWD", "vmdk"},
	{0, "# Disk DescriptorFile", "vmdk"},
	{0x40, "\x7f\x10\xda\xbe", "vdi"},
	{0, "vhdxfile", "vhdx"},
	{0, "conectix", "vpc"},
	{0, "QED\x00", "qed"},
	{0, "WithoutFreeSpace", "parallels"},
	{0, "WithouFreSpacExt", "parallels"},
	{0, "OOOO CowD", "cow"},
}

// Parse reads the beginning of an image.
func Parse(head []byte) (*Info, error) {
	if bytes.HasPrefix(head, []byte("QFI\xfb")) {
		return parseQcow(head)
	}
	for _, s := range signatures {
		if len(head) > s.offset && bytes.HasPrefix(head[s.offset:], []byte(s.magic)) {
			return &Info{Format: s.format}, nil
		}
	}
	return &Info{Format: "raw"}, nil
}

// Layout of a qcow2 header (docs/interop/qcow2.rst, "Header"); all big-endian.
const (
	offVersion      = 4  // u32
	offBacking      = 8  // u64
	offBackingSize  = 16 // u32
	offSize         = 24 // u64
	offCrypt        = 32 // u32
	offIncompatible = 72 // u64, since version 3
	offHeaderLength = 100
	sizeV2          = 72

	// Incompatible features.
	corrupt      = 1 << 1
	externalData = 1 << 2 // data lies in another file
	known        = 1<<5 - 1

	extEnd           = 0
	extBackingFormat = 0xe2792aca
	extDataFile      = 0x44415441
)

func parseQcow(b []byte) (*Info, error) {
	be := binary.BigEndian
	bad := func(format string, args ...any) (*Info, error) {
		return nil, fmt.Errorf("%w: qcow2: %s", ErrHeader, fmt.Sprintf(format, args...))
	}
	if len(b) < sizeV2 {
		return bad("%d bytes", len(b))
	}
	version := be.Uint32(b[offVersion:])
	if version == 1 {
		return &Info{Format: "qcow"}, nil
	}
	i := &Info{Format: "qcow2", Size: int64(be.Uint64(b[offSize:]))}
	if version < 2 || version > 3 {
		i.Unusable = fmt.Sprintf("it is of version %d of qcow2, which QEMU does not know", version)
		return i, nil
	}
	if be.Uint32(b[offCrypt:]) != 0 {
		i.Unusable = "it is encrypted by QEMU, whose key vmlatch does not take; encrypt inside the guest instead"
	}
	first := uint64(sizeV2)
	if version >= 3 {
		if len(b) < offHeaderLength+4 {
			return bad("%d bytes", len(b))
		}
		features := be.Uint64(b[offIncompatible:])
		if features&externalData != 0 {
			i.DataFile = "?"
		}
		i.Corrupt = features&corrupt != 0
		if features&^known != 0 {
			i.Unusable = fmt.Sprintf("it has features that QEMU does not know (%#x)", features&^known)
		}
		first = uint64(be.Uint32(b[offHeaderLength:]))
	}
	if at, n := be.Uint64(b[offBacking:]), uint64(be.Uint32(b[offBackingSize:])); at != 0 {
		if n == 0 || n > maxName || at > uint64(len(b)) || n > uint64(len(b))-at {
			return bad("the name of its backing file, %d bytes at %#x, leaves the header", n, at)
		}
		i.Backing = string(b[at : at+n])
	}
	for at := first; at+8 <= uint64(len(b)); {
		kind, n := be.Uint32(b[at:]), uint64(be.Uint32(b[at+4:]))
		if kind == extEnd {
			break
		}
		if n > uint64(len(b))-at-8 {
			return bad("an extension of %d bytes at %#x leaves the header", n, at)
		}
		switch data := string(b[at+8 : at+8+n]); kind {
		case extBackingFormat:
			i.BackingFormat = data
		case extDataFile:
			i.DataFile = data
		}
		at += 8 + (n+7)&^7
	}
	return i, nil
}
