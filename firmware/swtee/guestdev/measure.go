package guestdev

import (
	"context"

	"golang.org/x/sys/unix"
)

// registersDir is where Linux 6.16 and newer shows the registers of a trust domain, and lets RTMRs
// be extended (Linux, Documentation/ABI/testing, sysfs-devices-virtual-misc-tdx_guest).
const registersDir = "/sys/devices/virtual/misc"

// registerTree is tdx_guest/measurements: the registers by name. Writing to an RTMR extends it.
type registerTree struct{ p *platform }

// Nodes: the root, two directories, and the registers.
const (
	nodeGuest         = 2
	nodeMeasurements  = 3
	nodeFirstRegister = 4
	registerCount     = 8
	rtmrCount         = 4
	digestSize        = 48
)

// registerNames are in the order in which the port has the registers.
var registerNames = [registerCount]string{
	"rtmr0:sha384", "rtmr1:sha384", "rtmr2:sha384", "rtmr3:sha384", "mrtd:sha384", "mrconfigid", "mrowner",
	"mrownerconfig",
}

func (t *registerTree) lookup(parent uint64, name string) (uint64, bool) {
	for _, e := range t.list(parent) {
		if e.name == name {
			return e.node, true
		}
	}
	return 0, false
}

func (t *registerTree) attr(node uint64) (mode uint32, size uint64, ok bool) {
	switch {
	case node >= rootNode && node < nodeFirstRegister:
		return directory, 0, true
	case node < nodeFirstRegister+registerCount:
		mode = unix.S_IFREG | 0o444
		if node < nodeFirstRegister+rtmrCount {
			mode |= 0o200
		}
		return mode, digestSize, true
	}
	return 0, 0, false
}

func (t *registerTree) list(node uint64) (all []listed) {
	switch node {
	case rootNode:
		return []listed{{"tdx_guest", nodeGuest}}
	case nodeGuest:
		return []listed{{"measurements", nodeMeasurements}}
	case nodeMeasurements:
		for i, name := range registerNames {
			all = append(all, listed{name, nodeFirstRegister + uint64(i)})
		}
	}
	return all
}

func (t *registerTree) mkdir(uint64, string) (uint64, unix.Errno) { return 0, unix.EPERM }
func (t *registerTree) rmdir(uint64, string) unix.Errno           { return unix.EPERM }

func (t *registerTree) open(node uint64, flags uint32) (handle, unix.Errno) {
	mode, _, ok := t.attr(node)
	switch {
	case !ok || node < nodeFirstRegister:
		return nil, unix.ENOENT
	case flags&unix.O_ACCMODE != unix.O_RDONLY && mode&0o200 == 0:
		return nil, unix.EACCES
	}
	return &register{t.p, int(node - nodeFirstRegister)}, 0
}

// register is an open register.
type register struct {
	p *platform
	n int
}

func (r *register) read(context.Context) ([]byte, unix.Errno) {
	list, errno := r.p.registers()
	return list[r.n][:], errno
}

// write extends the register by a digest, which is written as a whole.
func (r *register) write(off uint64, b []byte) unix.Errno {
	if off != 0 || len(b) != digestSize {
		return unix.EINVAL
	}
	return r.p.extend(uint32(r.n), [digestSize]byte(b))
}

func (r *register) flush() unix.Errno { return 0 }
