package plan

// Coverage is what a measurement of this VM would prove, and what not.
type Coverage struct {
	Covered    []string `json:"covered"`
	NotCovered []string `json:"not-covered"`
}

func (b *Builder) coverage() {
	t, c, g := b.Traits, &b.plan.Covers, b.Guest
	if t.Unmeasured != "" {
		c.NotCovered = []string{"everything: " + t.Unmeasured}
		return
	}
	c.Covered = append(append([]string{"firmware image"}, t.Covers...), c.Covered...)
	switch {
	case g.KernelHashes:
		c.Covered = append(c.Covered, "kernel", "initrd", "kernel command line")
	case g.Kernel.Image != "" && t.KernelBy != "":
		c.Covered = append(c.Covered, "kernel, initrd and command line ("+t.KernelBy+")")
	case g.Kernel.Image != "":
		c.NotCovered = append(c.NotCovered, "kernel, initrd and command line: kernel-hashes is off")
	}
	if b.plan.configMeasured {
		c.Covered = append(c.Covered, "configuration of the first boot")
	}
	switch {
	case b.Facts.IGVM:
		c.Covered = append(c.Covered, "registers of the CPUs that the IGVM file names")
	case t.ModelMeasured:
		c.Covered = append(c.Covered, "number and model of CPUs")
	default:
		c.NotCovered = append(c.NotCovered, "number and model of CPUs")
	}
	c.NotCovered = append(c.NotCovered, "memory size", "devices and ACPI tables", "disks and networks")
}

// Covers lists what a measurement covers because of how the guest is launched.
func (b *Builder) Covers(what string) {
	b.plan.Covers.Covered = append(b.plan.Covers.Covered, what)
}
