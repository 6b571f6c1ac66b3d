package ovmf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strings"
)

// Descriptor is a QEMU firmware descriptor (firmware.json), reduced to what a
// launch needs. Its features use QEMU's words: amd-sev, amd-sev-es, intel-tdx, …
type Descriptor struct {
	Path        string   `json:"path"` // of the descriptor itself
	Description string   `json:"description"`
	Device      string   `json:"device"` // "memory" or "flash"
	Image       string   `json:"image"`  // file for -bios, or the code flash
	VarsImage   string   `json:"vars-template,omitempty"`
	Features    []string `json:"features"`
	machines    []target
}

type target struct {
	Architecture string   `json:"architecture"`
	Machines     []string `json:"machines"`
}

const maxDescriptor = 1 << 20

// DescriptorDirs returns the directories that QEMU's descriptors may lie in,
// the one that overrides first (firmware.json, introduction).
func DescriptorDirs() []string {
	dirs := []string{"/etc/qemu/firmware", "/usr/share/qemu/firmware"}
	if config, err := os.UserConfigDir(); err == nil {
		dirs = append([]string{filepath.Join(config, "qemu/firmware")}, dirs...)
	}
	return dirs
}

// FindDescriptors reads the descriptors of the directories, in the order in
// which QEMU's rules prefer them: by file name, a name in an earlier directory
// masking the same name in a later one, an empty file masking without taking
// its place. Files that cannot be used are reported in err, joined, next to the
// good ones.
func FindDescriptors(dirs ...string) (found []Descriptor, err error) {
	byName := map[string]string{}
	for _, dir := range dirs {
		entries, readErr := os.ReadDir(dir)
		if readErr != nil {
			if !errors.Is(readErr, fs.ErrNotExist) {
				err = errors.Join(err, readErr)
			}
			continue
		}
		for _, e := range entries {
			if _, masked := byName[e.Name()]; !masked && strings.HasSuffix(e.Name(), ".json") {
				byName[e.Name()] = filepath.Join(dir, e.Name())
			}
		}
	}
	names := make([]string, 0, len(byName))
	for name := range byName {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		d, use, readErr := readDescriptor(byName[name])
		if readErr != nil {
			err = errors.Join(err, readErr)
		} else if use {
			found = append(found, d)
		}
	}
	return found, err
}

func readDescriptor(file string) (d Descriptor, use bool, err error) {
	info, err := os.Stat(file)
	if err != nil {
		return d, false, err
	}
	if info.Size() == 0 {
		return d, false, nil
	}
	if info.Size() > maxDescriptor {
		return d, false, &Error{Part: "descriptor", Msg: fmt.Sprintf("%s: over %d bytes", file, maxDescriptor)}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return d, false, err
	}
	return ParseDescriptor(file, b)
}

// ParseDescriptor reads one descriptor. use is false for descriptors of kinds
// that no launch here can use, such as ARM or IGVM images.
func ParseDescriptor(file string, b []byte) (d Descriptor, use bool, err error) {
	type flashFile struct {
		Filename string `json:"filename"`
		Format   string `json:"format"`
	}
	var raw struct {
		Description string `json:"description"`
		Mapping     struct {
			Device     string    `json:"device"`
			Filename   string    `json:"filename"`
			Executable flashFile `json:"executable"`
			NVRAM      flashFile `json:"nvram-template"`
		} `json:"mapping"`
		Targets  []target `json:"targets"`
		Features []string `json:"features"`
	}
	if err := json.Unmarshal(b, &raw); err != nil {
		return d, false, &Error{Part: "descriptor", Msg: fmt.Sprintf("%s: %v", file, err)}
	}
	d = Descriptor{
		Path: file, Description: raw.Description, Device: raw.Mapping.Device,
		Image: raw.Mapping.Filename, Features: raw.Features, machines: raw.Targets,
	}
	switch d.Device {
	case "memory":
	case "flash":
		d.Image, d.VarsImage = raw.Mapping.Executable.Filename, raw.Mapping.NVRAM.Filename
		if raw.Mapping.Executable.Format != "raw" && raw.Mapping.Executable.Format != "" {
			return d, false, nil
		}
	default:
		return d, false, nil
	}
	if d.Image == "" {
		return d, false, &Error{Part: "descriptor", Msg: file + ": names no image"}
	}
	return d, true, nil
}

// Fits reports whether the descriptor is for the architecture and machine type
// (such as x86_64 and q35) and has all of the features.
func (d Descriptor) Fits(arch, machine string, features ...string) bool {
	for _, f := range features {
		if !slices.Contains(d.Features, f) {
			return false
		}
	}
	for _, t := range d.machines {
		if t.Architecture != arch {
			continue
		}
		for _, pattern := range t.Machines {
			if ok, _ := path.Match(pattern, machine); ok {
				return true
			}
			// Machine aliases: q35 stands for the newest pc-q35-*.
			if ok, _ := path.Match(pattern, "pc-"+machine+"-0"); ok {
				return true
			}
		}
	}
	return false
}
