package plan

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/confine"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// Stage is the first argument of a program that runs [confine.Run] with the others.
const Stage = "__stage"

// QEMUProfile is the AppArmor profile of QEMUs, which the package brings.
const QEMUProfile = "vmlatch-qemu"

// Confinement is what there is to confine QEMU with.
type Confinement struct {
	Stage   []string       // command line that runs [confine.Run]
	Host    confine.Host   // what the kernel can do
	Program []confine.File // what QEMU reads of its own
	// Resolver are the files that say where names of hosts are asked for.
	Resolver []string
	// Users are the ids that this host has set aside for root's VMs; nil for none. NoUsers says why
	// root has none.
	Users   *confine.Users
	NoUsers string
	// Private are files of the spec that not every user of the host can read.
	Private []string
	// Cannot says why QEMU cannot be confined; "" if it can.
	Cannot string
}

// Reasons for which QEMU is not confined.
const (
	noStage  = "the program that starts it has no stage"
	emulated = "an emulator runs it"
)

// confined reports whether QEMU is put into a box.
func (b *Builder) confined() bool { return b.unconfined() == "" }

// unconfined says why QEMU is put into no box.
func (b *Builder) unconfined() string {
	switch c := b.Facts.Confine; {
	case c == nil || len(c.Stage) == 0:
		return noStage
	case b.plan.Emulated:
		return emulated
	default:
		return c.Cannot
	}
}

// box is one with a program's own files, and what every program opens.
func (c *Confinement) box(program []confine.File) *confine.Box {
	box := &confine.Box{Landlock: c.Host.Landlock}
	for _, f := range program {
		box.Allow(f.Access, f.Path)
	}
	box.Allow(confine.Device, "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
	box.Allow(confine.Read, "/proc")
	return box
}

// confine adds the box that QEMU runs in. It comes last: what the command line names, it reaches.
func (b *Builder) confine() {
	if b.plan.Unconfined = b.unconfined(); b.plan.Unconfined != "" {
		return
	}
	c, g := b.Facts.Confine, b.Guest
	box := c.box(c.Program)
	box.Keys, box.MemoryLock = b.plan.Key != nil, uint64(b.plan.MemoryLock)
	if c.Host.AppArmor {
		box.Label = QEMUProfile
	}
	box.Allow(confine.Read, "/sys/devices/system")
	options := ParseOptions(b.plan.QEMUArgv())
	if options.One("-accel") == "kvm" {
		box.Allow(confine.Device, "/dev/kvm")
	}
	// Linux, include/uapi/linux/psp-sev.h: SEV_FACTORY_RESET, SEV_PDH_GEN.
	if d := b.Traits.Device; d != "" {
		box.Allow(confine.Device, d)
		box.Missing = append(box.Missing, "it can have the platform's keys made anew, which ends what was agreed"+
			" with owners: "+d+" takes every command from whom it lets in")
	}
	if len(g.PCI) > 0 {
		box.Allow(confine.Device, "/dev/vfio", "/dev/iommu")
		box.Allow(confine.Read, "/sys")
	}
	if g.Display.On() {
		box.Allow(confine.Write, b.InDir(rundir.ScreenDir))
	}
	for _, n := range g.Networks {
		if n.Connect != "" { // the other VM may come later
			box.Allow(confine.Read, b.plan.Dirs.LinkDir(n.Connect))
		}
		if n.Peer != "" {
			box.Allow(confine.Read, b.plan.Dirs.PeerDir(n.Peer, g.Name))
			box.Allow(confine.Write, b.plan.Dirs.PeerDir(g.Name, n.Peer)) // where it makes its own end
		}
	}
	for _, s := range g.Shares {
		switch {
		case s.Mode != Share9P:
		case s.ReadOnly:
			box.Allow(confine.Read, s.Path)
		default:
			box.Allow(confine.Write, s.Path)
			box.Owns = true // it keeps what the guest calls owners and modes
		}
	}
	box.Allow(confine.Read, b.reads...)
	for _, path := range g.extraFiles() { // whatever they are for
		switch {
		case strings.HasPrefix(path, "/dev/"):
			box.Allow(confine.Device, path)
		case path == "/sys":
			box.Allow(confine.Read, path)
		default:
			box.Allow(confine.Write, path)
		}
	}
	for _, path := range mentioned(options) {
		if !box.Reaches(path) {
			box.Allow(confine.Read, path)
		}
	}
	out := b.outward(options)
	b.separate(box, out)
	b.ownUser(box, out)
	b.plan.Confinement = box
}

// ownUser gives root's VM a user of its own, unless QEMU opens what another user could not.
func (b *Builder) ownUser(box *confine.Box, out outward) {
	why := ""
	switch {
	case len(b.Guest.PCI) > 0:
		why = "it opens devices of the host (VFIO)"
	case slices.ContainsFunc(b.Guest.Shares, func(s Share) bool { return s.Mode == Share9P }):
		why = `it serves directories itself (mode = "9p"; virtiofs does not need that)`
	case len(b.Guest.extraFiles()) > 0:
		why = "the spec's own devices and objects open files"
	case b.Guest.Networks.Linked() || len(out.sockets) > 0:
		why = "it connects to another VM, or to a service, by a socket that is for root"
	}
	b.Facts.Confine.own(box, why)
}

// own gives root's process a user of its own, or says why it stays root's: what this host lacks, or
// else why.
func (c *Confinement) own(box *confine.Box, why string) {
	switch {
	case c.Users == nil && c.NoUsers == "":
		return // it is not root that starts it
	case c.Users == nil:
		why = "there are no ids for VMs: " + c.NoUsers
	case !box.Has(confine.Mount):
		why = "without a mount namespace another user would not reach its files"
	case why == "":
		box.Users = c.Users
		return
	}
	box.Missing = append(box.Missing, "it is root, though without its capabilities: "+why)
}

// separate gives QEMU namespaces of its own, and says what it can reach where it cannot have them.
func (b *Builder) separate(box *confine.Box, out outward) {
	h := b.Facts.Confine.Host
	if h.NoNamespaces == "" {
		box.Namespaces = []string{confine.User, confine.Mount, confine.IPC, confine.PID}
		if out.networks == "" {
			box.Namespaces = append(box.Namespaces, confine.Network)
		}
	}
	for _, socket := range out.sockets {
		dir, ok := b.place(socket)
		if ok {
			box.Allow(confine.Read, dir)
			continue
		}
		box.Allow(confine.Read, socket)
		if box.Has(confine.Mount) {
			box.Namespaces = slices.DeleteFunc(box.Namespaces, func(n string) bool { return n == confine.Mount })
			box.Missing = append(box.Missing, "it can reach this user's sockets: "+socket+
				" may be made anew, and its directory is not for it alone")
		}
	}
	box.VSock = out.vsock
	if box.Rings = b.Guest.Disks.rings(); box.Rings {
		box.Missing = append(box.Missing, `it can use sockets of every kind, also those to virtual machines:`+
			` aio = "io_uring" takes rings, whose requests no filter sees`)
	}
	if out.networks != "" {
		box.Networked = true
		box.Allow(confine.Read, b.Facts.Confine.Resolver...)
		box.Missing = append(box.Missing,
			"it can reach the host's networks, and what listens on its loopback: "+out.networks)
	}
	box.Missing = append(box.Missing, h.Missing(box.Namespaces)...)
}

// texts are options whose values are not names of files, whatever stands in them, names that QEMU
// only repeats, or names that are within reach already.
var texts = []string{"-append", "-name", "-sandbox", "-add-fd", "-kernel", "-initrd", "-bios"}

// mentioned are the files that a command line names, sorted.
func mentioned(o *Options) (paths []string) {
	for name, values := range o.Values {
		if slices.Contains(texts, name) {
			continue
		}
		for _, v := range values {
			if strings.HasPrefix(v, "{") {
				var m map[string]any
				if json.Unmarshal([]byte(v), &m) == nil {
					paths = append(paths, pathsOf(m)...)
				}
				continue
			}
			for key, p := range Properties(v) {
				if !isLabel(key) {
					paths = append(paths, pathsOf(strings.TrimPrefix(p, "unix:"))...)
				}
			}
		}
	}
	paths = slices.DeleteFunc(paths, func(p string) bool { return strings.HasPrefix(p, fdsetPath) })
	slices.Sort(paths)
	return slices.Compact(paths)
}

// Whole is the name by which QEMU opens a file that it reads as a whole. Where that is measured, a
// QEMU that is confined gets a copy that can no longer change: what runs is what was looked at. Of
// a private file it gets one, too, as its user may be another. Others are opened by their path: the
// copy takes memory for as long as QEMU runs.
func (b *Builder) Whole(path, use string, measured bool) string {
	if !b.confined() || !measured && !slices.Contains(b.Facts.Confine.Private, path) {
		b.reads = append(b.reads, path)
		return path
	}
	fd := b.Inherit(use, "a sealed copy of "+path, func(*Opening) (*os.File, error) {
		from, err := openStorage(path, true, false)(nil)
		if err != nil {
			return nil, err
		}
		defer from.Close()
		return sealed(path, from)
	})
	return b.named(fmt.Sprintf("/proc/self/fd/%d", fd), path)
}

// named lets messages say a path where QEMU knows another name.
func (b *Builder) named(name, path string) string {
	if b.plan.names == nil {
		b.plan.names = map[string]string{}
	}
	b.plan.names[name] = path
	return name
}

// sealed is a copy in memory that can no longer be changed.
func sealed(path string, from io.WriterTo) (*os.File, error) {
	fd, err := unix.MemfdCreate(filepath.Base(path), unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	to := os.NewFile(uintptr(fd), path)
	if _, err = from.WriteTo(to); err == nil {
		_, err = unix.FcntlInt(to.Fd(), unix.F_ADD_SEALS,
			unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err != nil {
		_ = to.Close()
		return nil, &os.PathError{Op: "copy", Path: path, Err: err}
	}
	return to, nil
}
