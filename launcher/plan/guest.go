package plan

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/bytesize"
	"github.com/vmlatch/vmlatch/firmware/nearest"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/spec"
)

// Guest is one VM. Package tee fills it in for one technology; from then on it does
// not change.
type Guest struct {
	File *spec.File // that it was read from

	Name    string
	Memory  bytesize.Size
	CPUs    int
	Accel   string // auto, kvm, tcg
	Machine string // QEMU machine type
	CPU     string // QEMU CPU model; "" is chosen
	QEMU    string // program; "" is the host's

	Firmware Firmware
	Kernel   Kernel
	Backend  Backend
	Disks    Disks
	Networks Networks
	VSock    VSock
	Config   Config
	Common   Common
	Display  Display
	Agent    Agent
	Pin      Pin
	Limits   Limits
	PCI      PCIs
	Shares   Shares
	Devices  Devices
	Objects  Objects
	Latch    Latch
	Broker   Broker
	TPM      TPM

	// KernelHashes reports whether kernel, initrd and command line are measured.
	KernelHashes bool
}

// part is a part of a guest: a table of the spec, or an array of tables.
type part interface {
	complete(g *Guest) error // fills in defaults; an error says why it makes no sense
	build(b *Builder) error  // adds it to the plan
}

// parts lists them in the order in which they are built.
func (g *Guest) parts() []part {
	return []part{
		(*processor)(g), &g.Backend, &g.Firmware, &g.Kernel, &g.Disks, &g.Config, &g.Networks, &g.VSock,
		&g.Broker, &g.TPM, &g.Common, &g.Display, &g.Agent, &g.Pin, &g.Limits, &g.PCI, &g.Shares, &g.Objects,
		&g.Devices,
	}
}

// NewGuest is a guest as it is where a spec says nothing.
func NewGuest() Guest {
	return Guest{Memory: 512 << 20, CPUs: 1, Accel: "auto", Machine: "q35", Latch: Latch{Timeout: defaultTimeout}}
}

// Tables are where a spec is decoded into.
func (g *Guest) Tables() spec.Tables {
	return spec.Tables{
		"name": &g.Name, "memory": &g.Memory, "cpus": &g.CPUs, "accel": &g.Accel, "machine": &g.Machine,
		"cpu": &g.CPU, "qemu": &g.QEMU, "firmware": &g.Firmware, "kernel": &g.Kernel, "memory-backend": &g.Backend,
		"disk": &g.Disks, "network": &g.Networks, "device": &g.Devices, "object": &g.Objects, "latch": &g.Latch,
		"broker": &g.Broker, "tpm": &g.TPM, "vsock": &g.VSock, "config": &g.Config,
		"rng": &g.Common.RNG, "vmgenid": &g.Common.VMGenID, "watchdog": &g.Common.Watchdog, "panic": &g.Common.Panic,
		"display": &g.Display, "agent": &g.Agent, "pin": &g.Pin, "limits": &g.Limits, "pci": &g.PCI, "share": &g.Shares,
	}
}

// Complete fills in defaults and makes paths absolute. It refuses what makes no sense
// whatever the technology.
func (g *Guest) Complete() error {
	if g.Name == "" {
		g.Name = strings.TrimSuffix(filepath.Base(g.File.Path), filepath.Ext(g.File.Path))
	}
	if strings.ContainsRune(g.QEMU, '/') { // otherwise it is looked up in PATH
		g.QEMU = g.File.Abs(g.QEMU)
	}
	if err := rundir.CheckName(g.Name); err != nil {
		return g.File.Errorf("name", "%v", err)
	}
	for _, p := range g.parts() {
		if err := p.complete(g); err != nil {
			return err
		}
	}
	return nil
}

// Named is the guest under another name.
func (g Guest) Named(name string) (Guest, error) {
	g.Name = name
	if err := rundir.CheckName(name); err != nil {
		return g, &fault.Error{Kind: fault.Usage, Err: err}
	}
	return g, nil
}

// OneOf is an error unless the value of a key is one of the words.
func OneOf(f *spec.File, key, value string, words ...string) error {
	if slices.Contains(words, value) {
		return nil
	}
	e := f.Errorf(key, "%q: must be %s", value, nearest.List(words))
	e.Fix = nearest.Hint(value, words)
	return e
}
