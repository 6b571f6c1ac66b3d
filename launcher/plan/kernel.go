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
	k, c := &b.Guest.Kernel, b.Guest.Config.files()
	if !b.Guest.ConfigMeasured(b.Traits) {
		return b.Whole(k.Initrd, "initrd", measured)
	}
	b.plan.configMeasured = true
	fd := b.Inherit("initrd", "a sealed copy of [config] and "+k.Initrd, func(*Opening) (*os.File, error) {
		initrd := firstboot.Initrd{File: k.Initrd}
		content, err := c.Read()
		if err != nil {
			return nil, err
		}
		initrd.Config = content.Archive()
		return sealed(k.Initrd, initrd)
	})
	return b.named(fmt.Sprintf("/proc/self/fd/%d", fd), k.Initrd)
}

// InitrdSize is the length of what QEMU would load as the initrd, in bytes.
func (g *Guest) InitrdSize(t Traits) (int64, error) {
	initrd := firstboot.Initrd{File: g.Kernel.Initrd}
	if g.ConfigMeasured(t) {
		content, err := g.Config.files().Read()
		if err != nil {
			return 0, err
		}
		initrd.Config = content.Archive()
	}
	return initrd.Size()
}
