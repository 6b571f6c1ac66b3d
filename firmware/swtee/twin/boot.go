package twin

import (
	"crypto/sha512"
	"errors"
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/bzimage"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/swtee/internal/cmdline"
	"github.com/vmlatch/vmlatch/firmware/tdx/rtmr"
)

// Cannot says why a command line cannot run in two QEMUs, though it can be launched; "" if it can.
func Cannot(argv []string) string {
	if len(argv) == 0 {
		return ""
	}
	opts, err := cmdline.Parse(argv[1:])
	if err != nil {
		return ""
	}
	tdx, kernel := false, false
	for _, o := range opts {
		switch o.Name {
		case "kernel":
			kernel = true
		case "object":
			obj, err := cmdline.ParseObject(o.Value)
			if err == nil && obj.Type == "igvm-cfg" {
				return "firmware in an IGVM file"
			}
			tdx = tdx || err == nil && obj.Type == "tdx-guest"
		}
	}
	if tdx && !kernel {
		return "TDX without -kernel"
	}
	return ""
}

// check refuses what cannot be a guest.
func (l *lines) check(anyKernel bool) error {
	if l.firmware == nil {
		return errors.New("a confidential guest needs its firmware by -bios or as the first pflash drive")
	}
	image, err := ovmf.Parse(l.firmware.bytes)
	if err != nil {
		return fmt.Errorf("%s: %w", l.firmware.path, err)
	}
	if l.bound {
		if why := image.AcceptsTDX(); why != "" {
			return fmt.Errorf("%s: %s", l.firmware.path, why)
		}
	}
	if l.kernel == nil && l.object.Type == "sev-snp-guest" && l.object.On("kernel-hashes") {
		return errors.New("kernel-hashes=on without -kernel: QEMU would abort when it launches the guest")
	}
	if l.kernel == nil || anyKernel || l.object.Type == "sev-guest" {
		return nil
	}
	return oldKernel(l.kernel, l.object.Type)
}

// oldKernel refuses kernels without configfs-tsm, which came with Linux 6.7.
func oldKernel(f *file, object string) error {
	const leastMajor, leastMinor = 6, 7
	release := bzimage.Release(f.bytes)
	if newer, known := bzimage.AtLeast(release, leastMajor, leastMinor); newer || !known {
		return nil
	}
	technology := map[string]string{"sev-snp-guest": "SEV-SNP", "tdx-guest": "TDX"}[object]
	return fmt.Errorf("%s: Linux %s has no configfs-tsm, by which a guest of %s proves itself (Linux %d.%d or newer "+
		"has); --any-kernel takes it all the same", f.path, release, technology, leastMajor, leastMinor)
}

// boot is what firmware and kernel measure as they boot, in whose place swtee measures: under TCG
// they find no TDX.
type boot struct {
	profile rtmr.Profile
	events  []rtmr.Event
}

func newBoot(l *lines, profile string) (*boot, error) {
	if l.kernel == nil {
		return nil, errors.New("TDX without -kernel: swtee does not see what the firmware loads from a disk, " +
			"so that nothing could be measured into RTMR1 and RTMR2")
	}
	p := rtmr.Profiles()[0]
	if profile != "" {
		var err error
		if p, err = rtmr.ProfileNamed(profile); err != nil {
			return nil, err
		}
	}
	b := &rtmr.Boot{Kernel: l.kernel.bytes, Cmdline: l.append, HasInit: l.initrd != nil}
	if l.initrd != nil {
		b.Initrd = sha512.Sum384(l.initrd.bytes)
	}
	events, err := p.Events(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.kernel.path, err)
	}
	return &boot{p, events}, nil
}

// measureBoot extends the registers.
func (t *machine) measureBoot() error {
	if t.boot == nil {
		return nil
	}
	td := t.oracle.record.TD()
	if td == nil {
		return errors.New("the launch made no trust domain")
	}
	for _, e := range t.boot.events {
		td.Measure(e.Register, e.Digest)
	}
	td.SetProfile(t.boot.profile.Name)
	return nil
}
