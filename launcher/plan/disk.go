package plan

import (
	"fmt"
	"strings"

	"github.com/vmlatch/vmlatch/launcher/internal/argv"
)

// Disk is a table [[disk]]: one virtio disk.
type Disk struct {
	Image    string `toml:"image"`
	Format   string `toml:"format"` // raw, qcow2; "" by the file's name
	ReadOnly bool   `toml:"read-only"`
}

// Disks are a guest's disks, in order.
type Disks []Disk

func (all *Disks) complete(g *Guest) error {
	for i := range *all {
		d, key := &(*all)[i], fmt.Sprintf("disk %d", i+1)
		if d.Image == "" {
			return g.File.Errorf(key, "image is missing")
		}
		d.Image = g.File.Abs(d.Image)
		if d.Format == "" {
			d.Format = "raw"
			if strings.HasSuffix(d.Image, ".qcow2") {
				d.Format = "qcow2"
			}
		}
		if d.Format != "raw" && d.Format != "qcow2" {
			return g.File.Errorf(key, "format %q: must be raw or qcow2", d.Format)
		}
		if err := g.File.NoNUL(d.Image); err != nil {
			return err
		}
	}
	return nil
}

func (all *Disks) build(b *Builder) error {
	for _, d := range *all {
		id := b.ids.New("disk")
		b.Option("-blockdev", argv.JSON(map[string]any{
			"driver": d.Format, "node-name": id, "read-only": d.ReadOnly,
			"file": map[string]any{"driver": "file", "filename": d.Image},
		}))
		// QEMU gives a confidential guest's devices the modern transport and the DMA
		// API by itself (hw/core/machine.c, machine_run_board_init, since 6.0).
		b.Option("-device", argv.New("virtio-blk-pci").Set("drive", id).Set("id", "dev-"+id).String())
		b.File(d.Image, "disk", false)
	}
	return nil
}
