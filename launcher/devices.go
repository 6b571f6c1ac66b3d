package launcher

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/launcher/internal/argv"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// igvm loads firmware from an IGVM file, which brings its own memory layout (QEMU,
// backends/igvm-cfg.c).
func (b *builder) igvm(file string) error {
	if b.plan.tech.build != nil {
		if err := b.facts.needs("load the IGVM file "+file, "igvm-cfg"); err != nil {
			return err
		}
	}
	switch {
	case b.plan.tech.build == nil:
		return b.spec.errorf("firmware.image", "%s: an IGVM file is for confidential guests", file)
	case b.spec.Confidential.IDBlock != "" || b.spec.Latch.Until == UntilIDBlock:
		return b.spec.errorf("confidential.id-block", "QEMU takes policy and ID block from the IGVM file and drops the ones it was given: this launch would be compared with nothing")
	case b.spec.Kernel.Image != "":
		return b.spec.errorf("kernel.image", "an IGVM file brings all that is measured; a kernel beside it would not be")
	}
	b.opt("-object", argv.JSON(map[string]any{"qom-type": "igvm-cfg", "id": "igvm0", "file": file}))
	b.machine.Set("igvm-cfg", "igvm0")
	b.file(file, "firmware", true)
	b.choose("firmware", file, b.spec.From("firmware.image"))
	return nil
}

// firmware chooses between -bios and flash: images that a descriptor maps as
// memory, and whole images (which begin with a variable store), go to -bios.
func (b *builder) firmware() error {
	f := b.spec.Firmware
	if b.facts.IGVMFile {
		return b.igvm(f.Image)
	}
	d := ovmf.Descriptor{Image: f.Image, Device: "memory"}
	from := "spec"
	if f.Vars != "" || strings.Contains(filepath.Base(f.Image), "_CODE") {
		d.Device = "flash"
	}
	if f.lookup() {
		var err error
		if d, err = b.findFirmware(); err != nil {
			return err
		}
		from = d.Path
	}
	if d.Image == "" {
		b.choose("firmware", "QEMU's own SeaBIOS", "default")
		return nil
	}
	b.choose("firmware", d.Image, from)
	measured := b.plan.tech.build != nil
	if d.Device == "memory" {
		b.opt("-bios", d.Image)
		b.file(d.Image, "firmware", measured)
		return nil
	}
	if measured {
		return b.spec.errorf("firmware.image", "%s needs a variable store, which is not measured; use a single stateless image", d.Image)
	}
	b.flash("pflash0", d.Image, true)
	b.file(d.Image, "firmware code", false)
	switch {
	case f.Vars != "":
		b.flash("pflash1", f.Vars, false)
		b.file(f.Vars, "firmware variables, written by the guest", false)
	case d.VarsImage != "":
		vars := filepath.Join(b.plan.Dirs.Run, b.plan.Name, rundir.VarsFile)
		b.plan.Copies = append(b.plan.Copies, Copy{From: d.VarsImage, To: vars, Use: "firmware variables, for this run only"})
		b.flash("pflash1", vars, false)
	}
	return nil
}

// findFirmware takes the first descriptor that fits. Firmware that needs SMM or
// brings keys of somebody's is taken only if that was asked for.
func (b *builder) findFirmware() (ovmf.Descriptor, error) {
	want := b.spec.Firmware.Features
	for _, d := range b.facts.Descriptors {
		unasked := slices.ContainsFunc([]string{"requires-smm", "enrolled-keys"}, func(f string) bool {
			return slices.Contains(d.Features, f) && !slices.Contains(want, f)
		})
		if !unasked && d.Fits("x86_64", b.spec.Machine, want...) && (b.plan.tech.build == nil || d.Device == "memory") {
			return d, nil
		}
	}
	return ovmf.Descriptor{}, fmt.Errorf("%w: find firmware: no descriptor on this machine offers %s", ErrHost,
		strings.Join(append([]string{"uefi"}, want...), ", "))
}

func (b *builder) flash(node, path string, readOnly bool) {
	b.opt("-blockdev", argv.JSON(map[string]any{
		"driver": "raw", "node-name": node, "read-only": readOnly,
		"file": map[string]any{"driver": "file", "filename": path},
	}))
	b.machine.Set(node, node)
}

func (b *builder) kernel() error {
	k := b.spec.Kernel
	if k.Image == "" {
		return nil
	}
	measured := b.spec.KernelHashes()
	b.opt("-kernel", k.Image)
	b.file(k.Image, "kernel", measured)
	if k.Initrd != "" {
		b.opt("-initrd", k.Initrd)
		b.file(k.Initrd, "initrd", measured)
	}
	if k.Cmdline != "" {
		b.opt("-append", k.Cmdline)
	}
	return nil
}

func (b *builder) disks() error {
	for _, d := range b.spec.Disks {
		id := b.ids.New("disk")
		b.opt("-blockdev", argv.JSON(map[string]any{
			"driver": d.Format, "node-name": id, "read-only": d.ReadOnly,
			"file": map[string]any{"driver": "file", "filename": d.Image},
		}))
		// QEMU gives a confidential guest's devices the modern transport and the DMA
		// API by itself (hw/core/machine.c, machine_run_board_init, since 6.0).
		b.opt("-device", argv.New("virtio-blk-pci").Set("drive", id).Set("id", "dev-"+id).String())
		b.file(d.Image, "disk", false)
	}
	return nil
}

func (b *builder) networks() error {
	for i, n := range b.spec.Networks {
		id := b.ids.New("net")
		netdev := argv.New(n.Mode).Set("id", id)
		for _, f := range n.Forward {
			rule, err := forwardRule(f)
			if err != nil {
				return b.spec.errorf(fmt.Sprintf("network %d", i+1), "%v", err)
			}
			netdev.Set("hostfwd", rule)
		}
		// romfile= : an option ROM would be code that nobody measured.
		device := argv.New("virtio-net-pci").Set("netdev", id).Set("id", "dev-"+id).Set("romfile", "")
		if n.MAC != "" {
			device.Set("mac", n.MAC)
		}
		b.opt("-netdev", netdev.String(), "-device", device.String())
	}
	return nil
}

// forwardRule turns tcp:127.0.0.1:2222:22 into QEMU's form.
func forwardRule(s string) (string, error) {
	p := strings.Split(s, ":")
	if len(p) != 4 || p[0] != "tcp" && p[0] != "udp" {
		return "", fmt.Errorf("forward %q: must be tcp:ADDRESS:PORT:GUESTPORT or udp:…", s)
	}
	for _, port := range p[2:] {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return "", fmt.Errorf("forward %q: %q is no port", s, port)
		}
	}
	return fmt.Sprintf("%s:%s:%s-:%s", p[0], p[1], p[2], p[3]), nil
}
