package plan

import (
	"fmt"
	"os"

	"github.com/vmlatch/vmlatch/firmware/firstboot"
)

// Kernel is the table [kernel]: a kernel that QEMU hands to the firmware.
type Kernel struct {
	Image   string `toml:"image"`
	Initrd  string `toml:"initrd"`
	Cmdline string `toml:"cmdline"`
}

func (k *Kernel) complete(g *Guest) error {
	k.Image, k.Initrd = g.File.Abs(k.Image), g.File.Abs(k.Initrd)
	if k.Image == "" && (k.Initrd != "" || k.Cmdline != "") {
		return g.File.Errorf("kernel", "initrd and cmdline need a kernel image")
	}
	return g.File.NoNUL(k.Cmdline, k.Image, k.Initrd)
}

func (k *Kernel) build(b *Builder) error {
	if k.Image == "" {
		return nil
	}
	measured := b.Guest.KernelHashes
	b.Option("-kernel", b.Whole(k.Image, "kernel", measured))
	b.File(k.Image, "kernel", measured)
	if k.Initrd != "" {
		b.Option("-initrd", b.initrd(measured))
		b.File(k.Initrd, "initrd", measured)
	}
	if k.Cmdline != "" {
		b.Option("-append", k.Cmdline)
	}
	return nil
}

// initrd adds what QEMU loads as the initrd: the file, or a copy that has the configuration before
// it, where that is measured with it.
func (b *Builder) initrd(measured bool) string {
	file, c := b.Guest.Kernel.Initrd, b.Guest.measuredConfig(b.Traits)
	if c == nil {
		return b.Whole(file, "initrd", measured)
	}
	b.plan.configMeasured = true
	fd := b.Inherit("initrd", "a sealed copy of [config] and "+file, func(*Opening) (*os.File, error) {
		initrd, err := c.Before(file)
		if err != nil {
			return nil, err
		}
		return sealed(file, initrd)
	})
	return b.named(fmt.Sprintf("/proc/self/fd/%d", fd), file)
}

// measuredConfig is what stands before the initrd; nil for nothing.
func (g *Guest) measuredConfig(t Traits) *firstboot.Config {
	if !g.ConfigMeasured(t) {
		return nil
	}
	return g.Config.files()
}

// InitrdSize is the length of what QEMU would load as the initrd, in bytes.
func (g *Guest) InitrdSize(t Traits) (int64, error) {
	initrd, err := g.measuredConfig(t).Before(g.Kernel.Initrd)
	if err != nil {
		return 0, err
	}
	return initrd.Size()
}
