package plan

import (
	"strings"

	"github.com/vmlatch/vmlatch/firmware/bytesize"
	"github.com/vmlatch/vmlatch/launcher/confine"
	"github.com/vmlatch/vmlatch/launcher/internal/argv"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// Plan is everything that a start would do, as a value.
type Plan struct {
	Schema     string          `json:"schema"` // vmlatch.plan/1
	Name       string          `json:"name"`
	Technology string          `json:"technology"`
	Emulated   bool            `json:"emulated"`
	Argv       []string        `json:"argv"`
	FDs        []FD            `json:"fds"`
	Files      []File          `json:"files"` // what QEMU reads or writes
	Copies     []Copy          `json:"copies,omitempty"`
	Latch      string          `json:"latch"`   // what opens it
	Choices    []rundir.Choice `json:"choices"` // where values came from
	Covers     Coverage        `json:"measurement"`
	Slot       *Slot           `json:"slot,omitempty"`        // taken for as long as QEMU runs
	Key        *Key            `json:"key,omitempty"`         // made for QEMU, and gone with it
	MemoryLock bytesize.Size   `json:"memory-lock,omitempty"` // how much memory QEMU may pin
	Helpers    []Helper        `json:"helpers,omitempty"`     // started before QEMU
	Dirs       rundir.Root     `json:"directories"`
	// Confinement is the box that QEMU runs in, or else Unconfined says why there is none.
	Confinement *confine.Box `json:"confinement,omitempty"`
	Unconfined  string       `json:"unconfined,omitempty"`

	// What it was made from.
	Guest  *Guest `json:"-"`
	Facts  *Facts `json:"-"`
	Traits Traits `json:"-"`

	configMeasured bool // [config] stands before the initrd

	names map[string]string // paths, by the names of the descriptors that stand for them
	reads []File            // what else QEMU reads
}

// Schema names the format of plans.
const Schema = "vmlatch.plan/1"

// File is a file that the VM uses.
type File struct {
	Path     string `json:"path"`
	Use      string `json:"use"`
	Measured bool   `json:"measured"`
}

// Copy is a file that a start copies.
type Copy struct {
	From string `json:"from"`
	To   string `json:"to"`
	Use  string `json:"use"`
	Keep bool   `json:"keep,omitempty"` // made once, it stays
}

// Build works out the start of a guest. It reads no file and asks no program: equal
// arguments give equal plans. chosen tells why the guest has its technology.
func Build(g *Guest, t Technology, chosen rundir.Choice, f *Facts, root rundir.Root) (*Plan, error) {
	traits := t.Traits()
	b := &Builder{Guest: g, Facts: f, Traits: traits, plan: &Plan{
		Schema: Schema, Name: g.Name, Technology: traits.Name, Latch: g.Latch.Until,
		Dirs: root, Emulated: f.Emulated(), Guest: g, Facts: f, Traits: traits,
	}}
	b.plan.Choices = append(b.plan.Choices, chosen)
	b.Option(f.Emulator...)
	b.Option(f.QEMU)
	b.chooseQEMU()
	g.Networks = g.Networks.settle(b)
	b.base()
	for _, p := range g.parts() {
		if err := p.build(b); err != nil {
			return nil, err
		}
	}
	if err := t.Build(b); err != nil {
		return nil, err
	}
	b.Option("-machine", b.Machine.String())
	b.channels()
	b.keepLogs()
	b.confine()
	b.slot()
	b.coverage()
	return b.plan, nil
}

// CommandLine is the command as a person could type it, an option a line. The descriptors
// that it names exist only in a real start.
func (p *Plan) CommandLine() string {
	var b strings.Builder
	for i, arg := range p.Argv {
		switch {
		case i == 0:
		case strings.HasPrefix(arg, "-"):
			b.WriteString(" \\\n    ")
		default:
			b.WriteByte(' ')
		}
		b.WriteString(argv.Quote([]string{arg}))
	}
	return b.String()
}

// Named puts the paths of files into a message of QEMU, which knows their descriptors alone.
func (p *Plan) Named(text string) string {
	var pairs []string
	for name, path := range p.names { // with what ends the name, as QEMU writes it
		for _, end := range []string{"]", "'", ":"} {
			pairs = append(pairs, name+end, path+end)
		}
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

// QEMUArgv is the command line without the emulator.
func (p *Plan) QEMUArgv() []string { return p.Argv[len(p.Facts.Emulator):] }

// Inputs are the files that the platform measures.
func (p *Plan) Inputs() rundir.Inputs {
	k := p.Guest.Kernel
	in := rundir.Inputs{Kernel: k.Image, Initrd: k.Initrd, Cmdline: k.Cmdline, KernelHashes: p.Guest.KernelHashes}
	if p.configMeasured {
		in.Config = p.Guest.Config.files()
	}
	for _, f := range p.Files {
		if f.Use == useFirmware {
			in.Firmware = f.Path
		}
	}
	return in
}
