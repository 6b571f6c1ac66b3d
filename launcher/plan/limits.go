package plan

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/bytesize"
	"github.com/vmlatch/vmlatch/launcher/cgroup"
)

// Limits is the table [limits]: what QEMU may take of the host, by its control group.
type Limits struct {
	Memory bytesize.Size `toml:"memory"`
	CPU    float64       `toml:"cpu"` // processors' worth of time
	PIDs   int64         `toml:"pids"`
	IO     []IOLimit     `toml:"io"`
}

// IOLimit bounds what goes to and comes from a block device of the host, for each second.
type IOLimit struct {
	Device    string        `toml:"device"`
	Read      bytesize.Size `toml:"read"`
	Write     bytesize.Size `toml:"write"`
	ReadIOPS  int64         `toml:"read-iops"`
	WriteIOPS int64         `toml:"write-iops"`
}

// On reports whether there is a limit.
func (l *Limits) On() bool { return l.Memory > 0 || l.CPU != 0 || l.PIDs != 0 || len(l.IO) > 0 }

const (
	// overhead is what QEMU itself needs besides the guest's memory, at least, in bytes.
	overhead = 64 << 20
	// minCPU is the smallest share of a processor: 1 ms of the kernel's period of 100 ms.
	minCPU = 0.01
	// threads are those that QEMU needs besides one for each of the guest's CPUs: some for itself,
	// and up to 64 for its disks (util/thread-pool.c). It ends if it gets none.
	threads = 16 + 64
)

func (l *Limits) complete(g *Guest) error {
	bad := func(key, format string, args ...any) error {
		return g.File.Errorf("limits"+key, format, args...)
	}
	switch {
	case g.File.Has("limits") && !l.On():
		return bad("", "is empty: it needs memory, cpu, pids or io")
	case l.Memory != 0 && l.Memory < g.Memory+overhead:
		return bad(".memory", "%v: must be 64MiB more than the guest's memory (%v), at least: QEMU needs some, too",
			l.Memory, g.Memory)
	case l.CPU != 0 && !(l.CPU >= minCPU && l.CPU <= maxCPUs): // also what is not a number
		return bad(".cpu", "%v: must be %v to %d processors", l.CPU, minCPU, maxCPUs)
	case l.PIDs != 0 && l.PIDs < int64(g.CPUs+threads):
		return bad(
			".pids",
			"%d: must be %d at least: QEMU has a thread for each CPU, and others",
			l.PIDs,
			g.CPUs+threads,
		)
	}
	for i := range l.IO {
		d := &l.IO[i]
		switch {
		case d.Device == "":
			return bad(".io", "device is missing")
		case d.Read+d.Write <= 0 && d.ReadIOPS+d.WriteIOPS <= 0, d.ReadIOPS < 0, d.WriteIOPS < 0:
			return bad(".io", "%s: needs read, write, read-iops or write-iops, of more than 0", d.Device)
		}
		d.Device = g.File.Abs(d.Device)
		if err := g.File.NoNUL(d.Device); err != nil {
			return err
		}
	}
	return nil
}

func (l *Limits) build(b *Builder) error {
	for _, x := range []struct {
		on       bool
		key, how string
	}{
		{l.Memory > 0, "memory", l.Memory.String()},
		{l.CPU > 0, "cpu", fmt.Sprintf("%v processors", l.CPU)},
		{l.PIDs > 0, "pids", fmt.Sprint(l.PIDs)},
	} {
		if x.on {
			b.Choose("limit of "+x.key, x.how, b.Guest.File.From("limits."+x.key))
		}
	}
	for _, d := range l.IO {
		b.Choose("limit of io", d.String(), b.Guest.File.From("limits.io"))
	}
	return nil
}

func (d *IOLimit) String() string {
	text := d.Device
	for _, x := range []struct {
		on  bool
		how string
	}{
		{d.Read > 0, fmt.Sprintf(" read %v/s", d.Read)},
		{d.Write > 0, fmt.Sprintf(" write %v/s", d.Write)},
		{d.ReadIOPS > 0, fmt.Sprintf(" read %d/s", d.ReadIOPS)},
		{d.WriteIOPS > 0, fmt.Sprintf(" write %d/s", d.WriteIOPS)},
	} {
		if x.on {
			text += x.how
		}
	}
	return text
}

// Of are the limits for the kernel; an error is about a device that is not there.
func (l *Limits) Of() (*cgroup.Limits, error) {
	c := &cgroup.Limits{Memory: int64(l.Memory), CPU: l.CPU, PIDs: l.PIDs}
	for _, d := range l.IO {
		number, err := DeviceNumber(d.Device)
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(filepath.Join("/sys/dev/block", number, "partition")); err == nil {
			return nil, fmt.Errorf("%s: a partition: the kernel bounds whole disks", d.Device)
		}
		c.IO = append(c.IO, cgroup.IO{
			Device: number, Path: d.Device,
			Read: int64(d.Read), Write: int64(d.Write), ReadIOPS: d.ReadIOPS, WriteIOPS: d.WriteIOPS,
		})
	}
	return c, nil
}

// DeviceNumber is the number of a block device as the kernel writes it, MAJOR:MINOR. Other files
// are an error.
func DeviceNumber(file string) (string, error) {
	info, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode()&os.ModeDevice == 0 || info.Mode()&os.ModeCharDevice != 0 {
		return "", fmt.Errorf("%s: not a block device", file)
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)), nil
}
