package policy

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/firstboot"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/launch"
	"github.com/vmlatch/vmlatch/firmware/tdx"
	"github.com/vmlatch/vmlatch/firmware/tdx/rtmr"
)

// Digest is a measurement that a policy accepts, and what it was worked out from.
type Digest struct {
	Technology string   `json:"technology"`
	Register   string   `json:"register"` // MEASUREMENT, MRTD, RTMR1 and so on
	Value      []byte   `json:"-"`
	Hex        string   `json:"value"`
	From       []string `json:"from"` // files, or the policy itself
}

// maxCmdline is the longest command line, in bytes.
const maxCmdline = 64 << 10

func (f *File) path(name string) string {
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(f.dir, name)
}

// Root is where the root of an emulated platform lies; "" for genuine ones.
func (f *File) Root() string {
	if f.Emulated == nil {
		return ""
	}
	return f.path(f.Emulated.Root)
}

// ProfilePath is where a profile of RTMR0 lies: next to the policy.
func (f *File) ProfilePath(name string) string { return f.path(name + ".rtmr0.json") }

// Cmdline is the guest's command line, without the line's end of its file.
func (f *File) Cmdline() (string, error) {
	if f.Guest == nil || f.Guest.Cmdline == "" {
		return "", nil
	}
	b, err := regular.Read(f.path(f.Guest.Cmdline), maxCmdline)
	if err != nil {
		return "", fmt.Errorf("%w: guest.cmdline: %w (it names a file that holds the command line)", ErrPolicy, err)
	}
	line := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	if strings.ContainsAny(line, "\n\x00") {
		return "", f.errorf("guest.cmdline", "%s has several lines", f.Guest.Cmdline)
	}
	return line, nil
}

// Digests works out what the policy accepts. All technologies that have a table are in it.
func (f *File) Digests() (list []Digest, err error) {
	var img *ovmf.Image
	if f.Guest != nil {
		b, err := ovmf.ReadFile(f.path(f.Guest.Firmware))
		if err != nil {
			return nil, fmt.Errorf("%w: guest.firmware: %w", ErrPolicy, err)
		}
		if img, err = ovmf.Parse(b); err != nil {
			return nil, fmt.Errorf("%w: guest.firmware: %w", ErrPolicy, err)
		}
	}
	for _, add := range []func(*ovmf.Image) ([]Digest, error){f.sevDigests, f.tdxDigests, f.vtpmDigests} {
		more, err := add(img)
		if err != nil {
			return nil, err
		}
		list = append(list, more...)
	}
	for i := range list {
		list[i].Hex = fmt.Sprintf("%x", list[i].Value)
	}
	return list, nil
}

// within adds a technology to an error, unless it already says where it is.
func within(technology string, err error) error {
	if errors.Is(err, ErrPolicy) {
		return err
	}
	return fmt.Errorf("%w: %s: %w", ErrPolicy, technology, err)
}

// files are the names of the guest's files.
func (f *File) files(names ...string) (list []string) {
	for _, n := range names {
		if n != "" {
			list = append(list, n)
		}
	}
	return list
}

// sevDigests are those of SEV, SEV-ES and SEV-SNP.
func (f *File) sevDigests(img *ovmf.Image) (list []Digest, err error) {
	for _, t := range []struct {
		technology launch.Technology
		on         bool
	}{
		{launch.SEV, f.SEV != nil},
		{launch.SEVES, f.SEVES != nil},
		{launch.SNP, f.SNP != nil},
	} {
		if !t.on {
			continue
		}
		if t.technology == launch.SNP && f.SNP.Digests != nil {
			p, err := f.Report()
			if err != nil {
				return nil, err
			}
			for _, m := range p.Measurements {
				list = append(
					list,
					Digest{Technology: "sev-snp", Register: "MEASUREMENT", Value: m, From: []string{"digests"}},
				)
			}
			continue
		}
		sum, err := f.launchDigest(img, t.technology)
		if err != nil {
			return nil, within(string(t.technology), err)
		}
		g := f.Guest
		list = append(list, Digest{
			Technology: string(t.technology), Register: "MEASUREMENT", Value: sum,
			From: f.files(g.Firmware, g.Kernel, g.Initrd, g.Config, g.Cmdline),
		})
	}
	return list, nil
}

func (f *File) launchDigest(img *ovmf.Image, t launch.Technology) ([]byte, error) {
	in, err := f.inputs(img, t)
	if err != nil {
		return nil, err
	}
	return launch.Digest(in)
}

// Inputs are what a launch digest of the guest covers.
func (f *File) Inputs(t launch.Technology) (in launch.Inputs, err error) {
	if f.Guest == nil {
		return in, f.errorf("guest", "is missing")
	}
	b, err := ovmf.ReadFile(f.path(f.Guest.Firmware))
	if err != nil {
		return in, err
	}
	img, err := ovmf.Parse(b)
	if err != nil {
		return in, err
	}
	return f.inputs(img, t)
}

func (f *File) inputs(img *ovmf.Image, t launch.Technology) (in launch.Inputs, err error) {
	g := f.Guest
	in = launch.Inputs{Technology: t, VCPUs: g.CPUs}
	if in.Firmware, err = launch.LayoutOf(img); err != nil {
		return in, err
	}
	if t != launch.SEV {
		if g.CPUs == 0 || g.CPU == "" {
			return in, errors.New(
				"guest.cpus and guest.cpu are needed: the digest covers the registers of each CPU",
			)
		}
		if in.CPU, err = launch.ParseCPU(g.CPU); err != nil {
			return in, err
		}
	}
	if t == launch.SNP {
		in.Features = launch.DefaultFeatures
	}
	if g.Kernel == "" {
		return in, nil
	}
	line, err := f.Cmdline()
	if err != nil {
		return in, err
	}
	initrd, err := f.Initrd()
	if err != nil {
		return in, err
	}
	h, err := sev.HashKernelFiles(f.path(g.Kernel), initrd, line)
	in.Kernel = &h
	return in, err
}

// Config reads what configures the guest at its first boot; nil if nothing does.
func (f *File) Config() (firstboot.Content, error) {
	if f.Guest == nil || f.Guest.Config == "" {
		return nil, nil
	}
	c, err := firstboot.Load(f.path(f.Guest.Config))
	if err != nil {
		return nil, fmt.Errorf("%w: guest.config: %w", ErrPolicy, err)
	}
	content, err := c.Read()
	if err != nil {
		return nil, fmt.Errorf("%w: guest.config: %w", ErrPolicy, err)
	}
	return content, nil
}

// Initrd is what the guest gets as its initrd: the file, and the configuration before it.
func (f *File) Initrd() (firstboot.Initrd, error) {
	content, err := f.Config()
	return firstboot.Initrd{Config: content.Archive(), File: f.path(f.Guest.Initrd)}, err
}

func (f *File) tdxDigests(img *ovmf.Image) (list []Digest, err error) {
	if f.TDX == nil {
		return nil, nil
	}
	p, err := f.Quote()
	if err != nil {
		return nil, err
	}
	own := func(register string, values [][]byte) {
		for _, v := range values {
			list = append(
				list,
				Digest{
					Technology: "tdx",
					Register:   register,
					Value:      v,
					From:       []string{strings.ToLower(register)},
				},
			)
		}
	}
	own("RTMR0", p.RTMR[0])
	if p.MRTD != nil {
		own("MRTD", p.MRTD)
	} else {
		sum, err := tdx.Predict(img, tdx.PageByPage)
		if err != nil {
			return nil, fmt.Errorf("%w: tdx: %w", ErrPolicy, err)
		}
		list = append(list, Digest{Technology: "tdx", Register: "MRTD", Value: sum[:], From: f.files(f.Guest.Firmware)})
	}
	own("RTMR1", p.RTMR[1])
	own("RTMR2", p.RTMR[2])
	if p.RTMR[1] != nil && p.RTMR[2] != nil {
		return list, nil
	}
	profile, boot, err := f.Boot()
	if err != nil {
		return nil, err
	}
	one, two, err := profile.Predict(boot)
	if err != nil {
		return nil, fmt.Errorf("%w: tdx: %w", ErrPolicy, err)
	}
	g := f.Guest
	if p.RTMR[1] == nil {
		list = append(list, Digest{
			Technology: "tdx", Register: "RTMR1", Value: one[:], From: append(f.files(g.Kernel),
				"profile "+profile.Name),
		})
	}
	if p.RTMR[2] == nil {
		list = append(list, Digest{
			Technology: "tdx", Register: "RTMR2", Value: two[:],
			From: append(f.files(g.Cmdline, g.Initrd, g.Config), "profile "+profile.Name),
		})
	}
	return list, nil
}

// Boot is what the guest boots under TDX, and how its firmware measures that.
func (f *File) Boot() (p rtmr.Profile, b *rtmr.Boot, err error) {
	if p, err = f.profile(); err != nil {
		return p, nil, f.errorf("tdx.firmware-profile", "%v", err)
	}
	if f.Guest == nil || f.Guest.Kernel == "" {
		return p, nil, f.errorf("guest.kernel", "is missing")
	}
	b = &rtmr.Boot{}
	if b.Kernel, err = regular.Read(f.path(f.Guest.Kernel), maxKernel); err != nil {
		return p, nil, fmt.Errorf("%w: guest.kernel: %w", ErrPolicy, err)
	}
	if b.Cmdline, err = f.Cmdline(); err != nil {
		return p, nil, err
	}
	if f.Guest.Initrd != "" {
		b.HasInit = true
		initrd, err := f.Initrd()
		if err != nil {
			return p, nil, err
		}
		if b.Initrd, err = rtmr.HashInitrd(initrd); err != nil {
			return p, nil, fmt.Errorf("%w: guest.initrd: %w", ErrPolicy, err)
		}
	}
	return p, b, nil
}

// maxKernel is the largest kernel that is read, in bytes; unified images have some hundred MiB.
const maxKernel = 1 << 30

// OtherInitrds are those of hosts that left out a part of the configuration.
func (f *File) OtherInitrds() ([]firstboot.Other, error) {
	content, err := f.Config()
	if err != nil || content == nil {
		return nil, err
	}
	return content.Others(f.path(f.Guest.Initrd), nil), nil
}

// SecretRoom is the size in bytes of the area that the guest's firmware keeps for the secrets of
// SEV; 0 for none.
func (f *File) SecretRoom() (uint32, error) {
	b, err := ovmf.ReadFile(f.path(f.Guest.Firmware))
	if err != nil {
		return 0, err
	}
	img, err := ovmf.Parse(b)
	if err != nil {
		return 0, err
	}
	area, ok, err := img.SecretArea()
	if !ok {
		return 0, err
	}
	return area.Size, err
}
