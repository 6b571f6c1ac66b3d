package plan

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/internal/argv"
)

func (b *Builder) chooseQEMU() {
	from := b.Facts.QEMUFrom
	if i := b.Facts.Info; i != nil {
		from += ", version " + i.Version
	}
	b.Choose("qemu", b.Facts.QEMU, from)
}

// base is what every VM has: nothing that it did not ask for.
func (b *Builder) base() {
	g := b.Guest
	b.Option("-name", argv.New("guest="+g.Name).String(), "-nodefaults", "-no-user-config", "-display", "none")
	b.Option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	b.Option("-S")
	b.Machine = argv.New(g.Machine).SetBool("vmport", false).SetBool("mem-merge", false).
		SetBool("dump-guest-core", false)
	b.Option("-m", strconv.FormatUint(g.Memory.MiB(), 10), "-smp", strconv.Itoa(g.CPUs))
	if b.Traits.Confidential && !b.Facts.Resets(g, b.Traits) {
		b.Option("-no-reboot") // a reset guest is a new launch, without its secret if it had one
	}
	if b.Traits.Registers {
		b.Machine.SetBool("smm", false) // a host's way into the guest's registers
	}
	b.Choose("memory", g.Memory.String(), g.File.From("memory"))
	b.Choose("cpus", strconv.Itoa(g.CPUs), g.File.From("cpus"))
	b.Choose("machine", g.Machine, g.File.From("machine"))
}

// processor is a guest's processors and memory size: its keys outside of tables.
type processor Guest

// maxCPUs bounds the guest's CPUs.
const maxCPUs = 512

func (p *processor) complete(g *Guest) error {
	f := g.File
	if p.CPUs < 1 || p.CPUs > maxCPUs {
		return f.Errorf("cpus", "%d: must be 1 to %d", p.CPUs, maxCPUs)
	}
	if p.Memory < 16<<20 || p.Memory > 64<<40 || p.Memory%(1<<20) != 0 {
		return f.Errorf("memory", "%v: must be whole MiB, at least 16MiB", p.Memory)
	}
	if err := OneOf(f, "accel", p.Accel, "auto", "kvm", "tcg"); err != nil {
		return err
	}
	return g.File.NoNUL(p.Machine, p.CPU)
}

// build adds accelerator and CPU model.
func (p *processor) build(b *Builder) error {
	accel, err := b.accel()
	if err != nil {
		return err
	}
	b.Option("-accel", accel)
	cpu, from := b.model(accel)
	b.Option("-cpu", cpu)
	b.Choose("cpu", cpu, from)
	return nil
}

func (b *Builder) accel() (string, error) {
	kvm := b.Facts.Host.KVM
	accel, from := b.Guest.Accel, b.Guest.File.From("accel")
	if accel == "auto" {
		switch {
		case b.Emulated():
			accel, from = "kvm", "confidential guests need it; swtee answers for it"
		case b.Traits.Confidential:
			accel, from = "kvm", "confidential guests need it"
		case kvm.Usable == host.Yes:
			accel, from = "kvm", "KVM is usable"
		default:
			accel, from = "tcg", kvm.Why
		}
	}
	if accel == "kvm" && kvm.Usable != host.Yes && !b.Emulated() {
		return "", &fault.Error{Kind: fault.Host, Op: "use KVM", Err: errors.New(kvm.Why), Fix: kvm.Fix}
	}
	b.Choose("accel", accel, from)
	return accel, nil
}

// model is the CPU model, and where it came from.
func (b *Builder) model(accel string) (cpu, from string) {
	switch models := b.Traits.Models; {
	case b.Guest.CPU != "":
		return b.Guest.CPU, "spec"
	case len(models) > 0 && b.Traits.ModelMeasured:
		known := func(m string) bool { return slices.Contains(b.Facts.Info.CPUs, m) }
		return models[max(0, slices.IndexFunc(models, known))], "the model is measured, so it must not be the host's"
	case len(models) > 0:
		return models[0], fmt.Sprintf("%s takes no other", b.Traits.Name)
	case accel == "kvm":
		return "host", "KVM, and the model is not measured"
	}
	return "max", "all that the accelerator offers"
}
