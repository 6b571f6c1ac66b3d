package plan

import (
	"fmt"
	"os"
	"strings"

	"github.com/vmlatch/vmlatch/launcher/internal/argv"
)

// Disk is a table [[disk]]: one virtio disk.
type Disk struct {
	Image    string `toml:"image"`
	Format   string `toml:"format"` // raw, qcow2; "" by the file's name
	ReadOnly bool   `toml:"read-only"`
	// Backing and DataFile are the files that the image's header may name; it may name no
	// others.
	Backing  string `toml:"backing"`
	DataFile string `toml:"data-file"`

	guessed  bool // Format, by the name
	unlocked bool // others may use the image meanwhile
}

// OnlyLook makes a disk of which nothing is read or written, while another VM may use it.
func (d *Disk) OnlyLook() { d.ReadOnly, d.unlocked = true, true }

// Guessed reports whether the format was not given, and taken from the file's name.
func (d *Disk) Guessed() bool { return d.guessed }

// Disks are a guest's disks, in order.
type Disks []Disk

func (all *Disks) complete(g *Guest) error {
	for i := range *all {
		d, key := &(*all)[i], fmt.Sprintf("disk %d", i+1)
		if d.Image == "" {
			return g.File.Errorf(key, "image is missing")
		}
		d.Image = g.File.Abs(d.Image)
		d.Backing, d.DataFile = g.File.Abs(d.Backing), g.File.Abs(d.DataFile)
		if d.Format == "" {
			d.Format, d.guessed = FormatByName(d.Image), true
		}
		if d.Format != raw && d.Format != qcow2 {
			return g.File.Errorf(key, "format %q: must be raw or qcow2", d.Format)
		}
		if d.Format == raw && d.Backing+d.DataFile != "" {
			return g.File.Errorf(key, "backing and data-file are for qcow2 images")
		}
		if err := g.File.NoNUL(d.Image, d.Backing, d.DataFile); err != nil {
			return err
		}
	}
	return nil
}

// Formats of disk images.
const (
	raw   = "raw"
	qcow2 = "qcow2"
)

// FormatByName is the format that a file's name stands for.
func FormatByName(name string) string {
	if strings.HasSuffix(name, ".qcow2") {
		return qcow2
	}
	return raw
}

// storage is where an image's bytes are: a file, or a block device.
func (d *Disk) storage(path string) map[string]any {
	driver := "file"
	if info, err := os.Stat(path); err == nil && info.Mode()&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice {
		driver = "host_device"
	}
	node := map[string]any{"driver": driver, "filename": path}
	if d.unlocked {
		node["locking"] = "off"
	}
	return node
}

func (all *Disks) build(b *Builder) error {
	for i := range *all {
		d := &(*all)[i]
		id := b.ids.New("disk")
		node := map[string]any{
			"driver": d.Format, "node-name": id, "read-only": d.ReadOnly, "file": d.storage(d.Image),
		}
		if d.Format == qcow2 { // never what the header says: it may come from elsewhere
			node["backing"] = nil
			if d.Backing != "" {
				node["backing"] = map[string]any{
					"driver": FormatByName(d.Backing), "read-only": true, "file": d.storage(d.Backing),
				}
				if FormatByName(d.Backing) == qcow2 {
					node["backing"].(map[string]any)["backing"] = nil
				}
				b.File(d.Backing, "backing file of a disk", false)
			}
			if d.DataFile != "" {
				node["data-file"] = d.storage(d.DataFile)
				b.File(d.DataFile, "data of a disk", false)
			}
		}
		b.Option("-blockdev", argv.JSON(node))
		// QEMU gives a confidential guest's devices the modern transport and the DMA
		// API by itself (hw/core/machine.c, machine_run_board_init, since 6.0).
		b.Option("-device", argv.New("virtio-blk-pci").Set("drive", id).Set("id", "dev-"+id).String())
		b.File(d.Image, "disk", false)
	}
	return nil
}
