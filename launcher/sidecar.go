package launcher

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/sev"
)

// SidecarSuffix is added to a disk image's name for the file with its demands.
const SidecarSuffix = ".vmlatch.toml"

// Sidecar is what a disk image demands of whoever runs it (IMAGE.vmlatch.toml).
type Sidecar struct {
	Firmware     string   `toml:"firmware" json:"firmware,omitempty"`         // bios or uefi
	Technologies []string `toml:"technologies" json:"technologies,omitempty"` // that the image supports, preferred first
	// Policy is the least strict policy that the image accepts, by technology.
	Policy map[string][]string `toml:"policy" json:"policy,omitempty"`

	file string
}

// readSidecars reads the sidecars of a spec's disks, if there are any.
func readSidecars(s *Spec) ([]Sidecar, error) {
	var all []Sidecar
	for _, d := range s.Disks {
		c := Sidecar{file: d.Image + SidecarSuffix}
		if _, err := os.Lstat(c.file); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		f, err := openRegular(c.file) // also where it is a link to nowhere
		if err != nil {
			return nil, &FileError{Use: "demands of a disk image", Err: err, Spec: s.file}
		}
		b, err := readAtMost(f, maxSpec)
		_ = f.Close()
		if err != nil {
			return nil, &FileError{Use: "demands of a disk image", Err: err, Spec: s.file}
		}
		if _, err := decodeTOML(b, c.file, &c); err != nil {
			return nil, err
		}
		if err := c.validate(); err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

func (c *Sidecar) validate() error {
	bad := func(key, format string, args ...any) error {
		return &SpecError{File: c.file, Key: key, Msg: fmt.Sprintf(format, args...)}
	}
	if c.Firmware != "" && c.Firmware != FirmwareBIOS && c.Firmware != FirmwareUEFI {
		return bad("firmware", "%q: must be bios or uefi", c.Firmware)
	}
	for _, n := range c.Technologies {
		if _, ok := technologyByName(n); !ok {
			return bad("technologies", "%q: must be one of %s", n, strings.Join(Technologies(), ", "))
		}
	}
	for name, words := range c.Policy {
		var err error
		switch text := strings.Join(words, ","); name {
		case TechnologySEV, TechnologySEVES:
			_, err = sev.ParsePolicy(text)
		case TechnologySNP:
			_, err = sev.ParseSNPPolicy(text)
		default:
			err = errors.New("there are policies of sev, sev-es and sev-snp")
		}
		if err != nil {
			return bad("policy."+name, "%v", err)
		}
	}
	return nil
}

// demanded is what images ask for where a spec asks for nothing.
func demanded(all []Sidecar) (technologies []string, file string) {
	for _, c := range all {
		if len(c.Technologies) > 0 && !slices.Contains(c.Technologies, TechnologyNone) {
			return c.Technologies, c.file
		}
	}
	return nil, ""
}

// wantsConfidential says whether the VM may become a confidential one.
func (s *Spec) wantsConfidential(all []Sidecar) bool {
	names, _ := demanded(all)
	return names != nil || slices.ContainsFunc(s.asked, func(n string) bool { return n != TechnologyNone })
}

// needsKernelLog says whether a technology may be taken about which a check, or the
// number of its slots, needs the kernel's log.
func (s *Spec) needsKernelLog(all []Sidecar) bool {
	if s == nil {
		return false
	}
	names, _ := demanded(all)
	return slices.ContainsFunc(slices.Concat(s.asked, names), func(n string) bool {
		return n == TechnologySNP || n == TechnologyTDX || n == TechnologyMKTME
	})
}

// satisfy compares a spec with the demands of its images. Where the spec leaves
// something open the image decides.
func (s *Spec) satisfy(all []Sidecar) error {
	for _, c := range all {
		if len(c.Technologies) > 0 && !slices.Contains(c.Technologies, s.tech) {
			return s.conflict("confidential.technology", s.tech, c, "technologies", strings.Join(c.Technologies, ", "))
		}
		if c.Firmware != "" {
			have := s.Firmware.Type
			if have == "" && (s.Firmware.Image != "" || len(s.Firmware.Features) > 0) {
				have = FirmwareUEFI
			}
			if have == "" {
				s.Firmware.Type = c.Firmware
			} else if have != c.Firmware {
				return s.conflict("firmware", have, c, "firmware", c.Firmware)
			}
		}
		if err := s.satisfyPolicy(c); err != nil {
			return err
		}
	}
	return nil
}

func (s *Spec) satisfyPolicy(c Sidecar) error {
	words, ok := c.Policy[s.tech]
	if !ok {
		return nil
	}
	text := strings.Join(words, ",")
	switch s.tech {
	case TechnologySEV, TechnologySEVES:
		least, err := sev.ParsePolicy(text)
		have, err2 := s.Policy()
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		if !have.Covers(least) {
			return s.conflict("confidential.policy", have.String(), c, "policy."+s.tech, least.String())
		}
	case TechnologySNP:
		least, err := sev.ParseSNPPolicy(text)
		have, err2 := s.SNPPolicy()
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		if !have.Covers(least) {
			return s.conflict("confidential.policy", have.String(), c, "policy."+s.tech, least.String())
		}
	}
	return nil
}

// conflict names both sides.
func (s *Spec) conflict(key, have string, c Sidecar, demand, want string) error {
	return &SpecError{
		File: s.file, Key: key, Msg: fmt.Sprintf("%s, but the image demands %s = %s (%s)", have, demand, want, c.file),
		Fix: "change the spec, or the image's demands if they are yours",
	}
}

func readAtMost(f *os.File, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: over %d bytes", f.Name(), limit)
	}
	return b, err
}
