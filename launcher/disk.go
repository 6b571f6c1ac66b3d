package launcher

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/bytesize"
	"github.com/vmlatch/vmlatch/launcher/check"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/internal/diskimage"
	"github.com/vmlatch/vmlatch/launcher/plan"
)

// DiskSchema names the format of [DiskInfo].
const DiskSchema = "vmlatch.disk/1"

// DiskInfo is what a disk image is.
type DiskInfo struct {
	Schema        string `json:"schema"`
	Image         string `json:"image"`
	Format        string `json:"format"`
	Size          int64  `json:"size"`      // that a guest sees, in bytes; 0 for formats that QEMU alone reads
	Allocated     int64  `json:"allocated"` // that it takes on the host, in bytes
	Backing       string `json:"backing,omitempty"`
	BackingFormat string `json:"backing-format,omitempty"`
	DataFile      string `json:"data-file,omitempty"`
	InUse         bool   `json:"in-use"`             // by a VM, or by qemu-img
	Unusable      string `json:"unusable,omitempty"` // why QEMU would not open it
	Corrupt       bool   `json:"corrupt,omitempty"`  // marked so
}

// LookAtDisk reads what a disk image is. Nothing that it names is opened.
func LookAtDisk(image string) (*DiskInfo, error) {
	i, err := diskimage.Read(image)
	if err != nil {
		return nil, err
	}
	d := &DiskInfo{
		Schema: DiskSchema, Image: image, Format: i.Format, Size: i.Size, Backing: i.Backing,
		BackingFormat: i.BackingFormat, DataFile: i.DataFile, InUse: check.ImageInUse(image), Unusable: i.Unusable,
		Corrupt: i.Corrupt,
	}
	var st unix.Stat_t
	if err := unix.Stat(image, &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: image, Err: err}
	}
	if d.Allocated = st.Blocks * 512; st.Mode&unix.S_IFMT == unix.S_IFBLK {
		d.Allocated = d.Size
	}
	return d, nil
}

// NewDisk is a disk image that is to be made.
type NewDisk struct {
	Image   string
	Size    bytesize.Size // 0: that of Backing
	Format  string        // raw, qcow2; "" by the file's name
	Backing string        // what it is an overlay of; "" for nothing
}

// MakeDisk makes a disk image by qemu-img: whole, or not at all, and never in the place of a file.
func MakeDisk(ctx context.Context, d *NewDisk) error {
	format := d.Format
	if format == "" {
		format = plan.FormatByName(d.Image)
	}
	args := []string{"create", "-q", "-f", format}
	if d.Backing != "" {
		base, err := filepath.Abs(d.Backing)
		if err != nil {
			return err
		}
		info, err := knownImage(base, "")
		switch {
		case err != nil:
			return err
		case format == "raw":
			return usage(`an image with a backing file must be of the format "qcow2"`)
		}
		if d.Size == 0 {
			d.Size = bytesize.Size(info.Size)
		}
		args = append(args, "-u", "-b", base, "-F", info.Format) // -u: it is not opened, nor what it names
	} else if d.Size == 0 {
		return usage("the size is missing")
	}
	if _, err := os.Lstat(d.Image); err == nil {
		return usage("%s: is there already", d.Image)
	}
	dir, err := os.MkdirTemp(filepath.Dir(d.Image), ".vmlatch-disk-") // on the same file system
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	part := filepath.Join(dir, "image")
	args = append(args, "--", part)
	if d.Size != 0 {
		args = append(args, strconv.FormatUint(uint64(d.Size), 10))
	}
	if err := qemuImg(ctx, args...); err != nil {
		return err
	}
	if err := os.Chmod(part, 0o600); err != nil {
		return err
	}
	err = unix.Renameat2(unix.AT_FDCWD, part, unix.AT_FDCWD, d.Image, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) { // a file system that cannot
		err = os.Link(part, d.Image)
	}
	if errors.Is(err, fs.ErrExist) {
		return usage("%s: is there already", d.Image)
	}
	return err
}

// knownImage reads an image of a format, or of the one of its name. What a guest has written into
// it decides nothing: a header that is not of the format, or that names other files, is refused.
func knownImage(image, format string) (*diskimage.Info, error) {
	i, err := diskimage.Read(image)
	if err != nil {
		return nil, err
	}
	from := "--format"
	if format == "" {
		format, from = plan.FormatByName(image), "its name"
	}
	bad := ""
	switch {
	case i.Format != format && (format == "qcow2" || from != "--format"):
		bad = fmt.Sprintf("its content is %s, and by %s it is %s", i.Format, from, format)
	case format == "raw": // whatever a header in it says
		info, err := os.Stat(image)
		if err == nil && info.Mode().IsRegular() {
			i = &diskimage.Info{Format: "raw", Size: info.Size()}
		}
		return i, err
	case i.Unusable != "":
		bad = i.Unusable
	case i.DataFile != "":
		bad = "its data is in another file"
	}
	if bad != "" {
		return nil, &fault.Error{
			Kind: fault.Refused, Err: fmt.Errorf("%s: %s", image, bad),
			Fix: "a guest can write any header into its disk: --format says what it is, if you know that",
		}
	}
	return i, nil
}

// ResizeDisk gives a disk image another size. One that becomes smaller loses what is beyond, so
// shrink must be meant. format is "" for the one of the name.
func ResizeDisk(ctx context.Context, image, format string, size bytesize.Size, shrink bool) error {
	i, err := knownImage(image, format)
	if format == "" {
		format = plan.FormatByName(image)
	}
	switch {
	case err != nil:
		return err
	case check.ImageInUse(image):
		return &fault.Error{
			Kind: fault.Refused, Err: fmt.Errorf("%s: a VM uses it", image),
			Fix: "stop the VM first",
		}
	case int64(size) < i.Size && !shrink:
		return &fault.Error{
			Kind: fault.Usage, Err: fmt.Errorf("%s: it has %v, and what is beyond %v would be lost", image,
				bytesize.Size(i.Size), size),
			Fix: "make the file system in it smaller first, then --shrink",
		}
	}
	if info, err := os.Stat(image); err != nil || !info.Mode().IsRegular() {
		return errors.Join(err, usage("%s: is not a file: lvresize and its like change a device's size", image))
	}
	target, err := nodeName(image, format)
	if err != nil {
		return err
	}
	args := []string{"resize", "-q"}
	if shrink {
		args = append(args, "--shrink")
	}
	return qemuImg(ctx, append(args, "--", target, strconv.FormatUint(uint64(size), 10))...)
}

// nodeName names an image for programs of QEMU, with nothing left to its header.
func nodeName(image, format string) (string, error) {
	image, err := filepath.Abs(image)
	if err != nil {
		return "", err
	}
	node := map[string]any{"driver": format, "file": map[string]any{"driver": "file", "filename": image}}
	if format == "qcow2" {
		node["backing"] = nil
	}
	b, err := json.Marshal(node)
	return "json:" + string(b), err
}

func usage(format string, args ...any) error {
	return &fault.Error{Kind: fault.Usage, Err: fmt.Errorf(format, args...)}
}

// qemuImg runs QEMU's program for images.
func qemuImg(ctx context.Context, args ...string) error {
	const program = "qemu-img"
	path, err := exec.LookPath(program)
	if err != nil {
		return &fault.Error{
			Kind: fault.Host, Err: fmt.Errorf("%s is missing", program),
			Fix: "install it: the package qemu-utils",
		}
	}
	cmd := exec.CommandContext(ctx, path, args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		text := strings.TrimPrefix(strings.TrimSpace(said.String()), program+": ")
		return &fault.Error{
			Kind: fault.Host,
			Op:   program,
			Err:  errors.Join(ctx.Err(), fmt.Errorf("%s (%w)", text, err)),
		}
	}
	return nil
}
