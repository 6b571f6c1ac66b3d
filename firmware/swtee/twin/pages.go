package twin

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/firmware/swtee/under"
)

// errPages is wrapped by errors about memory of the twin that is not what the launch submitted.
var errPages = errors.New("the guest would run with other memory than was launched")

const fourGiB = 1 << 32

// load brings what the launch submitted into the twin, or finds it there: firmware is in ROM, which
// both QEMUs have made from the same file, and is compared; pages in RAM are written.
func (t *machine) load() error {
	image, err := ovmf.Parse(t.lines.firmware.bytes)
	if err != nil {
		return err
	}
	served, err := t.servedTable()
	if err != nil {
		return err
	}
	rom := uint64(fourGiB - len(image.Bytes))
	for _, r := range t.oracle.record.Regions() {
		switch {
		case r.Type != sev.PageNormal || !r.Measured:
			// The firmware fills such pages in on silicon, or they are empty. Nothing in the twin
			// reads them.
		case r.GPA == swtee.UnknownGPA:
			return fmt.Errorf("%w: %d bytes were submitted from outside guest memory", errPages, len(r.Contents))
		case r.GPA >= rom && r.GPA < fourGiB:
			if err := t.compare(&r); err != nil {
				return err
			}
		case t.lines.bound:
			return fmt.Errorf(
				"%w: the launch measured RAM at %#x, which this firmware would not read",
				errPages,
				r.GPA,
			)
		default:
			if err := t.qemu.Test.Write(r.GPA, served.in(&r)); err != nil {
				return fmt.Errorf("%w: %w", errPages, err)
			}
			t.log.Info("a page of the launch is in place", "gpa", fmt.Sprintf("%#x", r.GPA), "bytes", len(r.Contents))
		}
	}
	return nil
}

// chunk is how much of the twin's memory is read at once, in bytes.
const chunk = 1 << 20

// compare holds the twin's ROM against what was submitted.
func (t *machine) compare(r *under.Region) error {
	for off := 0; off < len(r.Contents); off += chunk {
		want := r.Contents[off:min(off+chunk, len(r.Contents))]
		got, err := t.qemu.Test.Read(r.GPA+uint64(off), len(want))
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%w: the firmware at %#x is not the one that was measured", errPages, r.GPA+uint64(off))
		}
	}
	return nil
}

// table is the kernel hash table that a twin needs whose QEMU fills in the kernel's setup header
// before it serves the kernel.
type table struct {
	measured, served []byte // nil: the submitted one is served
}

// in returns the contents of a region with that table in place of the measured one.
func (t table) in(r *under.Region) []byte {
	i := -1
	if t.served != nil {
		i = bytes.Index(r.Contents, t.measured)
	}
	if i < 0 {
		return r.Contents
	}
	b := bytes.Clone(r.Contents)
	copy(b[i:], t.served)
	return b
}

// servedTable finds out which table the twin's firmware needs. QEMU 10.0 and newer serve the
// kernel as it is, too, and firmware that checks takes that. Older ones fill in its header unless
// it is a guest of SEV: then the entry of the kernel is replaced, and nothing else.
func (t *machine) servedTable() (table, error) {
	l := t.lines
	if l.bound || l.kernel == nil || !l.object.On("kernel-hashes") {
		return table{}, nil
	}
	asItIs, err := t.qemu.Test.HasFile("etc/boot/kernel")
	if err != nil || asItIs {
		return table{}, err
	}
	setup, err := t.qemu.Test.KernelSetup()
	if err != nil {
		return table{}, err
	}
	if err := onlyHeader(l.kernel.bytes, setup); err != nil {
		return table{}, err
	}
	var initrd []byte
	if l.initrd != nil {
		initrd = l.initrd.bytes
	}
	hashes, err := sev.HashKernel(bytes.NewReader(l.kernel.bytes), bytes.NewReader(initrd), l.append)
	if err != nil {
		return table{}, err
	}
	measured := hashes.Table()
	d := sha256.New()
	d.Write(setup)
	d.Write(l.kernel.bytes[len(setup):])
	d.Sum(hashes.Kernel[:0])
	served := hashes.Table()
	t.log.Info("the kernel's entry of the hash table is that of the kernel with its header filled in, " +
		"which this QEMU serves")
	return table{measured[:], served[:]}, nil
}

// filledIn are the fields of the setup header that QEMU fills in (QEMU, hw/i386/x86-common.c,
// x86_load_linux), by offset and size.
var filledIn = []struct{ off, size int }{
	{0x1fa, 2}, {0x210, 1}, {0x211, 1}, {0x218, 4}, {0x21c, 4}, {0x224, 2}, {0x228, 4}, {0x250, 8},
}

// onlyHeader checks that a served setup differs from the file in these fields only.
func onlyHeader(kernel, setup []byte) error {
	if len(setup) > len(kernel) {
		return fmt.Errorf("%w: the kernel's setup has %d bytes, its file %d", errPages, len(setup), len(kernel))
	}
	b := bytes.Clone(setup)
	for _, f := range filledIn {
		if f.off+f.size <= len(b) {
			copy(b[f.off:f.off+f.size], kernel[f.off:])
		}
	}
	if !bytes.Equal(b, kernel[:len(b)]) {
		return fmt.Errorf("%w: the kernel that QEMU serves differs from the file in more than its header", errPages)
	}
	return nil
}
