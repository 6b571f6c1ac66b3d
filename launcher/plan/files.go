package plan

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Missing lists the files that QEMU could not read, each as an error.
func (p *Plan) Missing() (missing []error) {
	for _, f := range append(p.Files[:len(p.Files):len(p.Files)], p.reads...) {
		if err := readable(f.Path); err != nil {
			missing = append(missing, p.Guest.File.Unusable(f.Use, err))
		}
	}
	return missing
}

// readable is an error if QEMU could not read a file. It does not wait for the writer
// of a pipe. Disks may be devices.
func readable(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = fmt.Errorf("open %s: is a directory", path)
	}
	device := err == nil && info.Mode()&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice
	if err == nil && !info.Mode().IsRegular() && !device {
		err = fmt.Errorf("open %s: %w", path, errNotADisk)
	}
	return err
}

var errNotADisk = errors.New("neither a regular file nor a block device")
