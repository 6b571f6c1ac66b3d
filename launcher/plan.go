package launcher

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/internal/argv"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// Roles of the descriptors that QEMU inherits. The launcher opens them; a plan
// only says which number each has in the child.
const (
	roleVMLock  = "vm-lock"
	roleQMP     = "qmp"
	roleMonitor = "monitor"
	roleConsole = "console"
	roleEvents  = "events"
	roleSlot    = "slot"
)

var roleMeaning = map[string]string{
	roleVMLock:  "the lock that tells whether the VM lives",
	roleQMP:     "vmlatch's monitor, a listening socket",
	roleMonitor: "a monitor for people and their tools, a listening socket",
	roleConsole: "the guest's serial console, a listening socket",
	roleEvents:  "a monitor that writes events to a log",
	roleSlot:    "the lease of an encryption slot",
}

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
	MemoryLock Size            `json:"memory-lock,omitempty"` // how much memory QEMU may pin
	Dirs       rundir.Root     `json:"directories"`

	spec  *Spec
	tech  technology
	facts Facts
}

// PlanSchema names the format of plans.
const PlanSchema = "vmlatch.plan/1"

// FD is a descriptor that the child inherits.
type FD struct {
	Number  int    `json:"fd"`
	Role    string `json:"role"`
	Meaning string `json:"meaning"`
}

// File is a file that the VM uses.
type File struct {
	Path     string `json:"path"`
	Use      string `json:"use"`
	Measured bool   `json:"measured"`
}

// Copy is a file that a start makes from another one.
type Copy struct {
	From string `json:"from"`
	To   string `json:"to"`
	Use  string `json:"use"`
}

// Coverage says what a measurement of this VM would prove and what not.
type Coverage struct {
	Covered    []string `json:"covered"`
	NotCovered []string `json:"not-covered"`
}

// builder collects a plan.
type builder struct {
	spec    *Spec
	facts   Facts
	plan    *Plan
	machine *argv.Option
	fds     argv.FDs
	ids     argv.IDs
}

func (b *builder) opt(args ...string) { b.plan.Argv = append(b.plan.Argv, args...) }

func (b *builder) choose(what, value, from string) {
	b.plan.Choices = append(b.plan.Choices, rundir.Choice{What: what, Value: value, From: from})
}

func (b *builder) file(path, use string, measured bool) {
	b.plan.Files = append(b.plan.Files, File{path, use, measured})
}

// NewPlan works out a start. It reads no file and asks nobody: equal arguments
// give equal plans.
func NewPlan(spec *Spec, facts Facts, root rundir.Root) (*Plan, error) {
	return spec.choose(&facts, func(s *Spec, chosen rundir.Choice) (*Plan, error) {
		return buildPlan(s, chosen, facts, root)
	})
}

func buildPlan(spec *Spec, chosen rundir.Choice, facts Facts, root rundir.Root) (*Plan, error) {
	tech, _ := technologyByName(spec.tech)
	b := &builder{spec: spec, facts: facts, plan: &Plan{
		Schema: PlanSchema, Name: spec.Name, Technology: tech.name, Latch: spec.Latch.Until,
		Dirs: root, Emulated: facts.emulated(), spec: spec, tech: tech, facts: facts,
	}}
	b.plan.Choices = append(b.plan.Choices, chosen)
	b.opt(facts.Emulator...)
	b.opt(facts.QEMU)
	b.chooseQEMU()
	steps := []func() error{b.base, b.accelAndCPU, b.memory, b.firmware, b.kernel, b.disks, b.networks, b.extras}
	if tech.build != nil {
		steps = append(steps, func() error { return tech.build(b) })
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, err
		}
	}
	b.opt("-machine", b.machine.String())
	b.channels()
	b.slot()
	b.coverage()
	return b.plan, nil
}

// Spec is the spec as the plan carries it out: with the technology that was chosen.
func (p *Plan) Spec() *Spec { return p.spec }

func (b *builder) chooseQEMU() {
	from := b.facts.QEMUFrom
	if i := b.facts.Info; i != nil {
		from += ", version " + i.Version
	}
	b.choose("qemu", b.facts.QEMU, from)
}

// base is what every VM has: nothing that it did not ask for.
func (b *builder) base() error {
	s := b.spec
	b.opt("-name", argv.New("guest="+s.Name).String(), "-nodefaults", "-no-user-config", "-display", "none")
	b.opt("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	b.opt("-S")
	b.machine = argv.New(s.Machine).SetBool("vmport", false).SetBool("mem-merge", false).SetBool("dump-guest-core", false)
	b.opt("-m", fmt.Sprintf("%d", s.Memory.MiB()), "-smp", strconv.Itoa(s.CPUs))
	if t := b.plan.tech; t.build != nil && !b.facts.resets(s) {
		b.opt("-no-reboot") // a reset guest is a new launch, without its secret if it had one
	}
	if b.plan.tech.registers {
		b.machine.SetBool("smm", false) // a host's way into the guest's registers
	}
	b.choose("memory", s.Memory.String(), s.From("memory"))
	b.choose("cpus", strconv.Itoa(s.CPUs), s.From("cpus"))
	b.choose("machine", s.Machine, s.From("machine"))
	return nil
}

func (b *builder) accelAndCPU() error {
	kvm := b.facts.Host.KVM
	accel, from := b.spec.Accel, b.spec.From("accel")
	if accel == "auto" {
		switch {
		case b.plan.Emulated:
			accel, from = "kvm", "confidential guests need it; swtee answers for it"
		case b.plan.tech.build != nil:
			accel, from = "kvm", "confidential guests need it"
		case kvm.Usable == host.Yes:
			accel, from = "kvm", "KVM is usable"
		default:
			accel, from = "tcg", kvm.Why
		}
	}
	if accel == "kvm" && kvm.Usable != host.Yes && !b.plan.Emulated {
		return &HostError{Want: "use KVM", Why: kvm.Why, Fix: kvm.Fix}
	}
	b.opt("-accel", accel)
	b.choose("accel", accel, from)
	cpu, from := b.spec.CPU, "spec"
	if cpu == "" && b.plan.tech.model != "" {
		cpu, from = b.plan.tech.model, b.plan.tech.name+" takes no other"
		if b.plan.tech.modelMeasured {
			from = "the model is measured, so it must not be the host's"
			for _, m := range measuredModels {
				if slices.Contains(b.facts.Info.CPUs, m) {
					cpu = m
					break
				}
			}
		}
	}
	if cpu == "" {
		cpu, from = "max", "all that the accelerator offers"
		if accel == "kvm" {
			cpu, from = "host", "KVM, and the model is not measured"
		}
	}
	b.opt("-cpu", cpu)
	b.choose("cpu", cpu, from)
	return nil
}

// channels adds the sockets that QEMU inherits, and the descriptor that only
// has to stay open: the lock.
func (b *builder) channels() {
	b.fds.New(roleVMLock)
	state := filepath.Join(b.plan.Dirs.State, b.plan.Name)
	socket := func(id, role string) *argv.Option {
		return argv.New("socket").Set("id", id).SetInt("fd", b.fds.New(role))
	}
	server := func(o *argv.Option) *argv.Option { return o.SetBool("server", true).SetBool("wait", false) }
	b.opt("-chardev", server(socket("qmp", roleQMP)).String(), "-mon", "chardev=qmp,mode=control")
	b.opt("-chardev", server(socket("monitor", roleMonitor)).String(), "-mon", "chardev=monitor,mode=control")
	b.opt("-chardev", socket("events", roleEvents).Set("logfile", filepath.Join(state, rundir.EventsLog)).String(), "-mon", "chardev=events,mode=control")
	console := server(socket("console", roleConsole)).Set("logfile", filepath.Join(state, rundir.ConsoleLog))
	b.opt("-chardev", console.String(), "-serial", "chardev:console")
}

// slot leases an encryption slot, where the technology takes one.
func (b *builder) slot() {
	if b.plan.Slot = b.facts.slot(b.plan.tech.name); b.plan.Slot != nil {
		b.fds.New(roleSlot)
	}
	for i, role := range b.fds.Roles {
		b.plan.FDs = append(b.plan.FDs, FD{Number: 3 + i, Role: role, Meaning: roleMeaning[role]})
	}
}

// inputs are the files that the platform measures.
func (p *Plan) inputs() rundir.Inputs {
	in := rundir.Inputs{KernelHashes: p.spec.KernelHashes()}
	for _, f := range p.Files {
		if f.Use == "firmware" {
			in.Firmware = f.Path
		}
	}
	k := p.spec.Kernel
	in.Kernel, in.Initrd, in.Cmdline = k.Image, k.Initrd, k.Cmdline
	return in
}

// CommandLine is the command as a person could type it. The descriptors that
// it names exist only in a real start.
func (p *Plan) CommandLine() string { return argv.Quote(p.Argv) }

// CheckFiles looks whether what the VM reads can be read, before QEMU fails.
func (p *Plan) CheckFiles() error {
	if missing := p.missingFiles(); len(missing) > 0 {
		return missing[0]
	}
	return nil
}

func (p *Plan) missingFiles() (missing []error) {
	files := p.Files
	if c := p.spec.Confidential; c.Session != "" {
		files = append(files[:len(files):len(files)], File{Path: c.OwnerCert, Use: "owner-cert"}, File{Path: c.Session, Use: "session"})
	}
	for _, f := range files {
		if err := readable(f.Path); err != nil {
			missing = append(missing, &FileError{Use: f.Use, Err: err, Spec: p.spec.file})
		}
	}
	return missing
}

// readable says why QEMU could not read a file, without waiting for who writes a
// pipe. Disks may be devices.
func readable(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() && info.Mode()&(os.ModeDevice|os.ModeCharDevice) != os.ModeDevice {
		err = fmt.Errorf("open %s: is neither a regular file nor a block device", path)
		if info.IsDir() {
			err = fmt.Errorf("open %s: is a directory", path)
		}
	}
	return err
}

// FileError is a file of the spec that cannot be used.
type FileError struct {
	Use  string
	Spec string
	Err  error
}

func (e *FileError) Error() string { return fmt.Sprintf("%s: %s: %v", e.Spec, e.Use, e.Err) }

// Unwrap returns the cause.
func (e *FileError) Unwrap() error { return e.Err }
