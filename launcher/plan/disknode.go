package plan

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/internal/argv"
	"github.com/vmlatch/vmlatch/launcher/internal/diskimage"
)

// node is a block node, as -blockdev has it.
type node = map[string]any

func (all *Disks) build(b *Builder) error {
	controller := false
	for i := range *all {
		d := &(*all)[i]
		id := b.ids.New("disk")
		top := d.image(b, id, !d.Writes())
		if d.Ephemeral {
			top["node-name"] = id + "-base"
			delete(top, "discard")
			top = node{"driver": qcow2, "file": d.overlay(b, id), "backing": top, "read-only": false}
			d.tune(b, top)
		}
		top["node-name"] = id
		b.Option("-blockdev", argv.JSON(top))
		if d.Bus == busSCSI && !controller {
			controller = true
			b.Option("-device", "virtio-scsi-pci,id=scsi0")
		}
		if d.IOThread {
			b.Option("-object", "iothread,id=io-"+id)
		}
		b.Option("-device", d.device(id).String())
		b.File(d.Image, d.use(), false)
	}
	return nil
}

// use is what the image is for.
func (d *Disk) use() string {
	switch {
	case d.Bus == busCDROM:
		return "CD-ROM"
	case d.Ephemeral:
		return "disk, whose changes are dropped"
	}
	return "disk"
}

// device is what the guest sees. QEMU gives a confidential guest's virtio devices the modern
// transport and the DMA API by itself (hw/core/machine.c, machine_run_board_init, since 6.0).
func (d *Disk) device(id string) *argv.Option {
	driver := map[string]string{
		busVirtio: "virtio-blk-pci", busSCSI: "scsi-hd", busNVMe: "nvme", busCDROM: "ide-cd",
	}[d.Bus]
	o := argv.New(driver).Set("drive", id).Set("id", "dev-"+id)
	serial := d.Serial
	switch d.Bus {
	case busSCSI:
		o.Set("bus", "scsi0.0")
	case busNVMe:
		if serial == "" { // it must have one
			serial = id
		}
	}
	if serial != "" {
		o.Set("serial", serial)
	}
	if d.Boot != 0 {
		o.SetInt("bootindex", d.Boot)
	}
	if d.IOThread {
		o.Set("iothread", "io-"+id)
	}
	return o
}

// image is the node of a disk's image. What else it is made of is the spec's word, never that of
// the header, which may come from elsewhere.
func (d *Disk) image(b *Builder, id string, readOnly bool) node {
	n := node{"driver": d.Format, "node-name": id, "read-only": readOnly}
	n["file"] = d.storage(b, id, d.Image, readOnly)
	d.tune(b, n)
	if d.Format != qcow2 {
		return n
	}
	n["backing"] = nil
	if d.Backing != "" {
		base := node{
			"driver": FormatByName(d.Backing), "read-only": true,
			"file": d.storage(b, id+"-backing", d.Backing, true),
		}
		if FormatByName(d.Backing) == qcow2 {
			base["backing"] = nil
		}
		n["backing"] = base
		b.File(d.Backing, "backing file of a disk", false)
	}
	if d.DataFile != "" {
		n["data-file"] = d.storage(b, id+"-data", d.DataFile, readOnly)
		b.File(d.DataFile, "data of a disk", false)
	}
	return n
}

// tune sets what a format's node, and the file's under it, have in common.
func (d *Disk) tune(b *Builder, n node) {
	switch d.Cache {
	case cacheNone:
		n["cache"] = node{"direct": true}
	case cacheUnsafe:
		n["cache"] = node{"no-flush": true}
	}
	// What a guest frees tells the host which blocks are empty, so that a confidential guest says
	// it only if its spec wants that.
	if n["read-only"] != true && (d.Discard == discardUnmap || d.Discard == "" && !b.Traits.Confidential) {
		n["discard"] = discardUnmap
	}
}

// storage is where an image's bytes are: a file, or a block device. QEMU gets it as a descriptor of
// its own, and opens no path.
func (d *Disk) storage(b *Builder, role, path string, readOnly bool) node {
	driver := "file"
	if isBlockDevice(path) {
		driver = "host_device"
	}
	n := node{"driver": driver, "read-only": readOnly}
	n["filename"] = b.fdset(role, "a disk's image, "+path, path, d.open(path, readOnly))
	if d.unlocked {
		n["locking"] = "off"
	}
	if d.AIO == aioURing || d.AIO == aioNative {
		n["aio"] = d.AIO
	}
	d.tune(b, n)
	return n
}

func isBlockDevice(path string) bool {
	info, err := os.Stat(path)
	return err == nil && isBlock(info)
}

func isBlock(info os.FileInfo) bool {
	return info.Mode()&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice
}

// fdset lets QEMU inherit what an opener makes, and returns the name by which it opens that.
func (b *Builder) fdset(role, meaning, path string, open Opener) (filename string) {
	fd := b.Inherit(role, meaning, open)
	b.Option("-add-fd", argv.Key("fd", strconv.Itoa(fd)).SetInt("set", fd).Set("opaque", path).String())
	return b.named(fdsetPath+strconv.Itoa(fd), path)
}

// fdsetPath begins the names by which QEMU opens descriptors that it was given.
const fdsetPath = "/dev/fdset/"

// ErrNoStorage is wrapped by errors about what no disk can be.
var ErrNoStorage = errors.New("not a file and not a block device")

var errNoDirect = errors.New(`its file system has no direct I/O: leave cache = "none" out`)

// open opens an image, or a file that belongs to it. Its header is looked at once more, on the very
// file that QEMU gets: it could have been changed since the checks.
func (d *Disk) open(path string, readOnly bool) Opener {
	open := openStorage(path, readOnly, d.Cache == cacheNone)
	if path != d.Image || d.Format != qcow2 {
		return open
	}
	return func(o *Opening) (*os.File, error) {
		f, err := open(o)
		if err != nil || d.DataFile != "" {
			return f, err
		}
		info, err := diskimage.Read(fmt.Sprintf("/proc/self/fd/%d", f.Fd())) // without direct I/O
		if err == nil && info.DataFile != "" {
			err = fmt.Errorf("%s: %w", path, errDataFile)
		}
		if err != nil {
			_ = f.Close()
			return nil, err
		}
		return f, nil
	}
}

var errDataFile = errors.New("its header names a file for its data, which the spec does not")

// openStorage opens a file or a block device, and nothing that would make it wait. QEMU wants a
// descriptor with the very flags with which it would open the file (monitor/fds.c,
// monitor_fdset_dup_fd_add).
func openStorage(path string, readOnly, direct bool) Opener {
	return func(*Opening) (*os.File, error) {
		flags := unix.O_RDWR
		if readOnly {
			flags = unix.O_RDONLY
		}
		keep := 0
		if direct {
			keep = unix.O_DIRECT
		}
		f, err := os.OpenFile(path, flags|keep|unix.O_NONBLOCK, 0)
		if direct && errors.Is(err, unix.EINVAL) {
			err = &os.PathError{Op: "open", Path: path, Err: errNoDirect}
		}
		if err != nil {
			return nil, err
		}
		if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() && !isBlock(info) {
			_ = f.Close()
			return nil, &os.PathError{Op: "open", Path: path, Err: errors.Join(err, ErrNoStorage)}
		}
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETFL, keep)
		return f, err
	}
}

// overlay is a file without a name, for what the guest writes: it is gone with QEMU, however that
// ends.
func (d *Disk) overlay(b *Builder, id string) node {
	n := node{"driver": "file", "read-only": false}
	n["filename"] = b.fdset(
		id+"-overlay",
		"a file without a name, for what is written to "+d.Image,
		"overlay of "+d.Image,
		func(o *Opening) (*os.File, error) { return diskimage.Overlay(o.Dir.State, d.Image) },
	)
	d.tune(b, n)
	return n
}

// rings reports whether a disk is read by io_uring.
func (all Disks) rings() bool {
	return slices.ContainsFunc(all, func(d Disk) bool { return d.AIO == aioURing })
}
