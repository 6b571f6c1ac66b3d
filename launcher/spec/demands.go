package spec

import (
	"errors"
	"io/fs"
	"os"

	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/launcher/fault"
)

// DemandsSuffix is added to a disk image's name for the file with its demands.
const DemandsSuffix = ".vmlatch.toml"

// Demands are what a disk image demands of the VM that runs it
// (IMAGE.vmlatch.toml).
type Demands struct {
	// Firmware is bios or uefi.
	Firmware string
	// Technologies are those that the image supports, preferred first.
	Technologies []string
	// Policy is the least strict policy that the image accepts, by technology.
	Policy map[string][]string

	File *File
}

// LoadDemands reads the demands of a disk image; nil if it has none. use names the
// file in errors of the spec.
func (f *File) LoadDemands(image string) (*Demands, error) {
	path := image + DemandsSuffix
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	b, err := regular.Read(path, maxFile) // also where it is a link to nowhere
	if err != nil {
		return nil, f.Unusable("demands of a disk image", err)
	}
	return ParseDemands(b, path)
}

// ParseDemands reads the demands of a disk image.
func ParseDemands(b []byte, path string) (d *Demands, err error) {
	d = &Demands{}
	d.File, err = Parse(b, path, "",
		Tables{"firmware": &d.Firmware, "technologies": &d.Technologies, "policy": &d.Policy})
	return d, err
}

// Errorf is an error about the value of one of the demands' keys.
func (d *Demands) Errorf(key, format string, args ...any) *fault.Error {
	return d.File.Errorf(key, format, args...)
}
