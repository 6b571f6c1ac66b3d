package plan

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
		b.Option("-initrd", b.Whole(k.Initrd, "initrd", measured))
		b.File(k.Initrd, "initrd", measured)
	}
	if k.Cmdline != "" {
		b.Option("-append", k.Cmdline)
	}
	return nil
}
