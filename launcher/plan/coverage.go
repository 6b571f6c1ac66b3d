package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

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
	disks := "disks and networks"
	if word := rootHash(g.Kernel.Cmdline); word != "" && len(c.NotCovered) == 0 {
		c.Covered = append(c.Covered, "the disk that the initrd opens by "+word+" (dm-verity)")
		disks = "other disks, and networks"
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
	c.NotCovered = append(c.NotCovered, "memory size", "devices and ACPI tables", disks)
}

// rootHash is the word of a command line that names the top of a tree of hashes, which the initrd
// opens a disk by (systemd-veritysetup-generator(8)); "" if there is none.
func rootHash(cmdline string) string {
	for word := range strings.FieldsSeq(cmdline) {
		key, value, _ := strings.Cut(word, "=")
		hash, err := hex.DecodeString(value)
		if (key == "roothash" || key == "usrhash") && err == nil && len(hash) >= sha256.Size {
			return fmt.Sprintf("%s=%.8s…", key, value)
		}
	}
	return ""
}

// Covers lists what a measurement covers because of how the guest is launched.
func (b *Builder) Covers(what string) {
	b.plan.Covers.Covered = append(b.plan.Covers.Covered, what)
}
