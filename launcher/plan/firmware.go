package plan

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/internal/argv"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// Firmware is the table [firmware]: firmware by file, or by what it must be able to do.
type Firmware struct {
	Type     string   `toml:"type"` // bios, uefi; "" is bios unless the rest says uefi
	Image    string   `toml:"image"`
	Vars     string   `toml:"vars"`
	Features []string `toml:"features"`
	// SecureBoot is firmware that starts only what its keys have signed, and whose variables stay
	// with the VM's name.
	SecureBoot bool `toml:"secure-boot"`
}

// Types of firmware.
const (
	FirmwareBIOS = "bios"
	FirmwareUEFI = "uefi"
)

// useFirmware is the use of the file that is measured as the guest's firmware.
const useFirmware = "firmware"

// Lookup reports whether the firmware has to be found through QEMU's descriptors.
func (f *Firmware) Lookup() bool {
	return f.Image == "" && (f.Type == FirmwareUEFI || len(f.Features) > 0 || f.SecureBoot)
}

func (f *Firmware) complete(g *Guest) error {
	f.Image, f.Vars = g.File.Abs(f.Image), g.File.Abs(f.Vars)
	if f.Type != "" {
		if err := OneOf(g.File, "firmware.type", f.Type, FirmwareBIOS, FirmwareUEFI); err != nil {
			return err
		}
	}
	switch {
	case !f.SecureBoot:
	case f.Type == FirmwareBIOS:
		return g.File.Errorf("firmware.secure-boot", "Secure Boot is of UEFI; type is %q", f.Type)
	case f.Image != "" && f.Vars == "":
		return g.File.Errorf("firmware.vars",
			"Secure Boot's keys are in the variables: name the file that belongs to image, or leave image out")
	case f.Image == "" && f.Vars != "":
		return g.File.Errorf("firmware.image", "vars belong to an image: name it, or leave vars out")
	}
	return g.File.NoNUL(f.Image, f.Vars)
}

// build chooses between -bios and flash: images that a descriptor maps as memory, and
// whole images (which begin with a variable store), go to -bios.
func (f *Firmware) build(b *Builder) error {
	if b.Facts.IGVM {
		return b.igvm(f.Image)
	}
	d := ovmf.Descriptor{Image: f.Image, Device: "memory"}
	from := "spec"
	if f.Vars != "" || strings.Contains(filepath.Base(f.Image), "_CODE") {
		d.Device = "flash"
	}
	if f.Lookup() {
		var err error
		if d, err = b.findFirmware(); err != nil {
			return err
		}
		from = d.Path
	}
	if d.Image == "" {
		b.Choose("firmware", "QEMU's own SeaBIOS", "default")
		return nil
	}
	b.Choose("firmware", d.Image, from)
	measured := b.Traits.Confidential
	if d.Device == "memory" {
		b.Option("-bios", b.Whole(d.Image, useFirmware, measured))
		b.File(d.Image, useFirmware, measured)
		return nil
	}
	if measured {
		return b.Guest.File.Errorf("firmware.image",
			"%s needs a variable store, which is not measured; use a single stateless image", d.Image)
	}
	b.flash("pflash0", d.Image, true)
	b.File(d.Image, "firmware code", false)
	if f.SecureBoot || slices.Contains(d.Features, "requires-smm") {
		if err := b.protectFlash(); err != nil {
			return err
		}
	}
	switch {
	case f.Vars != "":
		b.flash("pflash1", f.Vars, false)
		b.File(f.Vars, "firmware variables, written by the guest", false)
	case f.SecureBoot && d.VarsImage != "":
		vars := filepath.Join(b.plan.Dirs.State, b.plan.Name, rundir.VarsFile)
		b.plan.Copies = append(b.plan.Copies,
			Copy{From: d.VarsImage, To: vars, Use: "firmware variables, kept", Keep: true})
		b.flash("pflash1", vars, false)
	case d.VarsImage != "":
		vars := filepath.Join(b.plan.Dirs.Run, b.plan.Name, rundir.VarsFile)
		b.plan.Copies = append(b.plan.Copies,
			Copy{From: d.VarsImage, To: vars, Use: "firmware variables, for this run only"})
		b.flash("pflash1", vars, false)
	}
	return nil
}

// findFirmware takes the first descriptor that fits. Firmware that needs SMM or brings
// keys is taken only if the spec asks for that.
func (b *Builder) findFirmware() (ovmf.Descriptor, error) {
	want := b.Guest.Firmware.Features
	if b.Guest.Firmware.SecureBoot {
		want = append(slices.Clone(want), "secure-boot", "enrolled-keys", "requires-smm")
	}
	for _, d := range b.Facts.Descriptors {
		unasked := slices.ContainsFunc([]string{"requires-smm", "enrolled-keys"}, func(f string) bool {
			return slices.Contains(d.Features, f) && !slices.Contains(want, f)
		})
		stateless := d.Device == "memory" || !b.Traits.Confidential
		if !unasked && stateless && d.Fits("x86_64", b.Guest.Machine, want...) {
			return d, nil
		}
	}
	return ovmf.Descriptor{}, &fault.Error{
		Kind: fault.Host, Op: "find firmware",
		Err: fmt.Errorf("no descriptor on this machine offers %s",
			strings.Join(append([]string{"uefi"}, want...), ", ")),
		Fix: "install a firmware that has it, or name a file with image = in [firmware]",
	}
}

// protectFlash lets only the firmware, in system management mode, write variables: a guest's kernel
// could change Secure Boot's keys else (edk2, OvmfPkg/README, "SMM support").
func (b *Builder) protectFlash() error {
	if m := b.Guest.Machine; m != "q35" && !strings.HasPrefix(m, "pc-q35") {
		return b.Guest.File.Errorf("machine", "%s: firmware with Secure Boot needs q35", m)
	}
	b.Machine.SetBool("smm", true)
	b.Option("-global", "driver=cfi.pflash01,property=secure,value=on")
	b.Option("-global", "ICH9-LPC.disable_s3=1")
	return nil
}

func (b *Builder) flash(node, path string, readOnly bool) {
	name := path
	if b.confined() { // an emulator looks into the file itself
		name = b.fdset(node, "the firmware's "+path, path, openStorage(path, readOnly, false))
	}
	b.Option("-blockdev", argv.JSON(map[string]any{
		"driver": "raw", "node-name": node, "read-only": readOnly,
		"file": map[string]any{"driver": "file", "filename": name},
	}))
	b.Machine.Set(node, node)
}

// igvm loads firmware from an IGVM file, which brings its own memory layout (QEMU,
// backends/igvm-cfg.c).
func (b *Builder) igvm(file string) error {
	const id = "igvm0"
	object := Object{Type: "igvm-cfg", Since: "10.1, if it was built with libigvm"}
	if b.Traits.Confidential {
		if err := b.Facts.Needs("load the IGVM file "+file, object); err != nil {
			return err
		}
	}
	spec := b.Guest.File
	switch {
	case !b.Traits.Confidential:
		return spec.Errorf("firmware.image", "%s: an IGVM file is for confidential guests", file)
	case b.Guest.Kernel.Image != "":
		return spec.Errorf(
			"kernel.image",
			"an IGVM file brings all that is measured; a kernel next to it would not be",
		)
	}
	name := b.Whole(file, useFirmware, true)
	b.Option("-object", argv.JSON(map[string]any{"qom-type": object.Type, "id": id, "file": name}))
	b.Machine.Set("igvm-cfg", id)
	b.File(file, useFirmware, true)
	b.Choose("firmware", file, spec.From("firmware.image"))
	return nil
}
