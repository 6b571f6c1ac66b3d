package launcher

import (
	"fmt"

	"github.com/vmlatch/vmlatch/launcher/internal/argv"
)

// memory adds a backend for the guest's memory, where the spec or the technology
// needs another one than QEMU's own. Where private memory comes from guest_memfd
// the backend holds only what the guest shares (AMD and Intel document
// memory-backend-memfd with share=on for it).
func (b *builder) memory() error {
	s := b.spec.Backend
	private := b.plan.tech.private
	if b.plan.tech.locked && !b.plan.Emulated {
		b.plan.MemoryLock = lockedMemory(b.spec.Memory)
	}
	if s == (BackendSpec{}) && !private {
		return nil
	}
	kind, from := s.Type, b.spec.From("memory-backend.type")
	if kind == "" {
		kind, from = "ram", "default"
		if private || s.HugePages != 0 {
			kind, from = "memfd", "the guest shares pages of it"
		}
	}
	object := "memory-backend-" + kind
	props := map[string]any{"qom-type": object, "id": "ram", "size": uint64(b.spec.Memory)}
	if private {
		props["share"], props["prealloc"] = true, false
	}
	for key, v := range map[string]*bool{"share": s.Share, "prealloc": s.Prealloc, "reserve": s.Reserve} {
		if v != nil {
			props[key] = *v
		}
	}
	if s.HugePages != 0 {
		props["hugetlb"], props["hugetlbsize"] = true, uint64(s.HugePages)
	}
	if kind == "memfd" && b.facts.Info != nil {
		if err := b.facts.needs("give the guest memory", object); err != nil {
			return err
		}
	}
	b.opt("-object", argv.JSON(props))
	b.machine.Set("memory-backend", "ram")
	b.choose("memory-backend", kind, from)
	return nil
}

// pinnedBeside is what QEMU pins besides the guest's memory: firmware, ROMs,
// video memory, and room for more (libvirt allows as much).
const pinnedBeside = 256 << 20

// lockedMemory is how much memory a guest's QEMU has to pin.
func lockedMemory(memory Size) Size { return memory + pinnedBeside }

// extras adds the spec's own devices and objects, as they are.
func (b *builder) extras() error {
	for _, o := range b.spec.Objects {
		b.opt("-object", argv.JSON(o))
	}
	for i, d := range b.spec.Devices {
		if _, ok := d["id"]; !ok {
			with := map[string]any{"id": fmt.Sprintf("extra%d", i)}
			for k, v := range d {
				with[k] = v
			}
			d = with
		}
		b.opt("-device", argv.JSON(d))
	}
	return nil
}

// coverage says what the measurement would and would not prove.
func (b *builder) coverage() {
	t, c := b.plan.tech, &b.plan.Covers
	if t.unmeasured != "" {
		c.NotCovered = []string{"everything: " + t.unmeasured}
		return
	}
	c.Covered = append([]string{"firmware image"}, t.covers...)
	if b.spec.Confidential.IDBlock != "" {
		c.Covered = append(c.Covered, "guest policy (by the ID block)")
	}
	switch {
	case b.spec.KernelHashes():
		c.Covered = append(c.Covered, "kernel", "initrd", "kernel command line")
	case b.spec.Kernel.Image != "" && t.kernelBy != "":
		c.Covered = append(c.Covered, "kernel, initrd and command line ("+t.kernelBy+")")
	case b.spec.Kernel.Image != "":
		c.NotCovered = append(c.NotCovered, "kernel, initrd and command line: kernel-hashes is off")
	}
	switch {
	case b.facts.IGVMFile:
		c.Covered = append(c.Covered, "registers of the CPUs that the IGVM file names")
	case t.modelMeasured:
		c.Covered = append(c.Covered, "number and model of CPUs")
	default:
		c.NotCovered = append(c.NotCovered, "number and model of CPUs")
	}
	c.NotCovered = append(c.NotCovered, "memory size", "devices and ACPI tables", "disks and networks")
}
