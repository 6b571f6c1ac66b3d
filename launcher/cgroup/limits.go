package cgroup

import (
	"fmt"
	"slices"
)

// Limits bound a VM; what is zero is not bounded.
type Limits struct {
	Memory int64   // bytes that QEMU may have, the guest's memory included
	CPU    float64 // processors' worth of time
	PIDs   int64   // threads and processes
	IO     []IO
}

// IO bounds what goes to and comes from a block device, for each second.
type IO struct {
	Device              string // MAJOR:MINOR
	Path                string // of the device, for systemd
	Read, Write         int64  // bytes
	ReadIOPS, WriteIOPS int64
}

// On reports whether anything is bounded.
func (l *Limits) On() bool { return l.Memory > 0 || l.CPU > 0 || l.PIDs > 0 || len(l.IO) > 0 }

// Controllers are those of the kernel that the limits take, sorted.
func (l *Limits) Controllers() (list []string) {
	for name, on := range map[string]bool{
		"memory": l.Memory > 0, "cpu": l.CPU > 0, "pids": l.PIDs > 0, "io": len(l.IO) > 0,
	} {
		if on {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}

// period is what a share of the processors is counted over, in microseconds: the kernel's default.
const period = 100_000

// file is a file of a control group, and what is written to it.
type file struct{ name, text string }

// files are those by which the kernel is told. Memory that is swapped out would not be bounded.
func (l *Limits) files() (list []file) {
	if l.Memory > 0 {
		list = append(list, file{"memory.max", fmt.Sprint(l.Memory)}, file{"memory.swap.max", "0"})
	}
	if l.CPU > 0 {
		list = append(list, file{"cpu.max", fmt.Sprintf("%d %d", int64(l.CPU*period), period)})
	}
	if l.PIDs > 0 {
		list = append(list, file{"pids.max", fmt.Sprint(l.PIDs)})
	}
	for _, d := range l.IO {
		text := d.Device
		for _, x := range []struct {
			key   string
			value int64
		}{{"rbps", d.Read}, {"wbps", d.Write}, {"riops", d.ReadIOPS}, {"wiops", d.WriteIOPS}} {
			if x.value > 0 {
				text += fmt.Sprintf(" %s=%d", x.key, x.value)
			}
		}
		list = append(list, file{"io.max", text})
	}
	return list
}

// property is one of a scope's, as busctl takes it: name, type, value.
type property []string

// properties are those of a scope.
func (l *Limits) properties() (list []property) {
	if l.Memory > 0 {
		list = append(list, property{"MemoryMax", "t", fmt.Sprint(l.Memory)}, property{"MemorySwapMax", "t", "0"})
	}
	if l.CPU > 0 {
		list = append(list, property{"CPUQuotaPerSecUSec", "t", fmt.Sprint(int64(l.CPU * 1e6))})
	}
	if l.PIDs > 0 {
		list = append(list, property{"TasksMax", "t", fmt.Sprint(l.PIDs)})
	}
	for _, x := range []struct {
		name  string
		value func(*IO) int64
	}{
		{"IOReadBandwidthMax", func(d *IO) int64 { return d.Read }},
		{"IOWriteBandwidthMax", func(d *IO) int64 { return d.Write }},
		{"IOReadIOPSMax", func(d *IO) int64 { return d.ReadIOPS }},
		{"IOWriteIOPSMax", func(d *IO) int64 { return d.WriteIOPS }},
	} {
		var pairs []string
		for _, d := range l.IO {
			if n := x.value(&d); n > 0 {
				pairs = append(pairs, d.Path, fmt.Sprint(n))
			}
		}
		if len(pairs) > 0 {
			list = append(list, append(property{x.name, "a(st)", fmt.Sprint(len(pairs) / 2)}, pairs...))
		}
	}
	return list
}
