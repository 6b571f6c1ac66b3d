package plan

import (
	"fmt"
	"strings"
)

// Disk is a table [[disk]].
type Disk struct {
	Image    string `toml:"image"`
	Format   string `toml:"format"` // raw, qcow2; "" by the file's name
	ReadOnly bool   `toml:"read-only"`
	// Backing and DataFile are the files that the image's header may name; it may name no
	// others.
	Backing  string `toml:"backing"`
	DataFile string `toml:"data-file"`
	// Ephemeral lets the guest write, and the image stay as it is: what is written is gone with the
	// VM.
	Ephemeral bool `toml:"ephemeral"`

	Cache   string `toml:"cache"`   // one of caches
	AIO     string `toml:"aio"`     // one of aios
	Discard string `toml:"discard"` // unmap, ignore; "" by the guest's kind

	Bus      string `toml:"bus"` // one of buses
	Serial   string `toml:"serial"`
	Boot     int    `toml:"boot"` // the firmware tries 1 first; 0 for no place of its own
	IOThread bool   `toml:"iothread"`

	guessed  bool // Format, by the name
	unlocked bool // others may use the image meanwhile
}

// OnlyLook makes a disk of which nothing is read or written, while another VM may use it.
func (d *Disk) OnlyLook() { d.ReadOnly, d.unlocked = true, true }

// Guessed reports whether the format was not given, and taken from the file's name.
func (d *Disk) Guessed() bool { return d.guessed }

// Writes reports whether the image itself is written.
func (d *Disk) Writes() bool { return !d.ReadOnly && !d.Ephemeral }

// Discards reports whether the spec lets the guest say which blocks are free.
func (d *Disk) Discards() bool { return d.Discard == discardUnmap }

// Unsafe reports whether flushes are ignored.
func (d *Disk) Unsafe() bool { return d.Cache == cacheUnsafe }

// Disks are a guest's disks, in order.
type Disks []Disk

// Formats of disk images.
const (
	raw   = "raw"
	qcow2 = "qcow2"
)

// What keys of a disk may be; the first is the default.
var (
	caches   = []string{"writeback", cacheNone, cacheUnsafe}
	aios     = []string{aioAuto, aioThreads, aioURing, aioNative}
	discards = []string{discardUnmap, discardIgnore}
	buses    = []string{busVirtio, busSCSI, busNVMe, busCDROM}
)

const (
	cacheNone     = "none"   // the host's page cache is passed by
	cacheUnsafe   = "unsafe" // flushes are ignored: a crash of the host destroys the disk
	aioAuto       = "auto"
	aioThreads    = "threads"
	aioURing      = "io_uring"
	aioNative     = "native"
	discardUnmap  = "unmap" // blocks that the guest frees are given back
	discardIgnore = "ignore"
	busVirtio     = "virtio"
	busSCSI       = "scsi"
	busNVMe       = "nvme"
	busCDROM      = "cdrom"
)

// maxSerial is the longest serial number that all buses show, in bytes (virtio 1.2, section
// 5.2.6.1).
const maxSerial = 20

func (all *Disks) complete(g *Guest) error {
	boots := map[int]bool{}
	for i := range *all {
		d, key := &(*all)[i], fmt.Sprintf("disk %d", i+1)
		if err := d.complete(g, key); err != nil {
			return err
		}
		if d.Boot != 0 && boots[d.Boot] {
			return g.File.Errorf(key+".boot", "%d: another disk has this place in the boot order", d.Boot)
		}
		boots[d.Boot] = true
	}
	return nil
}

func (d *Disk) complete(g *Guest, key string) error {
	bad := func(k, format string, args ...any) error { return g.File.Errorf(key+"."+k, format, args...) }
	if d.Image == "" {
		return g.File.Errorf(key, "image is missing")
	}
	for _, x := range []struct {
		key   string
		value *string
		words []string
	}{{"cache", &d.Cache, caches}, {"aio", &d.AIO, aios}, {"bus", &d.Bus, buses}} {
		if *x.value == "" {
			*x.value = x.words[0]
		}
		if err := OneOf(g.File, key+"."+x.key, *x.value, x.words...); err != nil {
			return err
		}
	}
	if d.Discard != "" {
		if err := OneOf(g.File, key+".discard", d.Discard, discards...); err != nil {
			return err
		}
	}
	d.Image = g.File.Abs(d.Image)
	d.Backing, d.DataFile = g.File.Abs(d.Backing), g.File.Abs(d.DataFile)
	if d.Format == "" {
		d.Format, d.guessed = FormatByName(d.Image), true
	}
	if d.Bus == busCDROM {
		d.ReadOnly = true
	}
	switch {
	case d.Format != raw && d.Format != qcow2:
		return g.File.Errorf(key, "format %q: must be raw or qcow2", d.Format)
	case d.Format == raw && d.Backing+d.DataFile != "":
		return g.File.Errorf(key, "backing and data-file are for qcow2 images")
	case d.AIO == aioNative && d.Cache != cacheNone:
		return bad("aio", `"native" needs cache = "none": the kernel does it only past its page cache`)
	case d.Ephemeral && d.ReadOnly:
		return bad("ephemeral", "nothing is written to a disk that is read-only")
	case d.Ephemeral && d.Cache == cacheNone:
		return bad("ephemeral", `not with cache = "none": what is written is gone with the VM anyway`)
	case d.IOThread && d.Bus != busVirtio:
		return bad("iothread", `is for bus = "virtio"`)
	case d.Boot < 0 || d.Boot > maxBoot:
		return bad("boot", "%d: must be 1 to %d", d.Boot, maxBoot)
	case len(d.Serial) > maxSerial || !isSerial(d.Serial):
		return bad(
			"serial",
			"%q: must be up to %d letters, digits, dots, dashes and underscores",
			d.Serial,
			maxSerial,
		)
	}
	return g.File.NoNUL(d.Image, d.Backing, d.DataFile)
}

// maxBoot is the last place in the boot order that a disk can have.
const maxBoot = 1000

func isSerial(text string) bool {
	return strings.Trim(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == ""
}

// FormatByName is the format that a file's name stands for.
func FormatByName(name string) string {
	if strings.HasSuffix(name, ".qcow2") {
		return qcow2
	}
	return raw
}
