package plan

import (
	"maps"
	"path/filepath"
	"slices"

	"github.com/vmlatch/vmlatch/launcher/internal/argv"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// Builder collects a plan.
type Builder struct {
	Guest   *Guest
	Facts   *Facts
	Traits  Traits
	Machine *argv.Option // the value of -machine

	plan  *Plan
	ids   argv.IDs
	reads []string // files that QEMU opens itself
}

// Option adds QEMU options.
func (b *Builder) Option(args ...string) { b.plan.Argv = append(b.plan.Argv, args...) }

// Choose tells where a value came from.
func (b *Builder) Choose(what, value, from string) {
	b.plan.Choices = append(b.plan.Choices, rundir.Choice{What: what, Value: value, From: from})
}

// File lists a file that the VM uses.
func (b *Builder) File(path, use string, measured bool) {
	b.plan.Files = append(b.plan.Files, File{path, use, measured})
}

// Read lists a file that QEMU reads once, at its start.
func (b *Builder) Read(path, use string) {
	b.plan.reads = append(b.plan.reads, File{Path: path, Use: use})
}

// Emulated reports whether the platform is an emulated one.
func (b *Builder) Emulated() bool { return b.plan.Emulated }

// InDir is the path of a file in the VM's own directory, which exists while the VM does.
func (b *Builder) InDir(name string) string { return filepath.Join(b.plan.Dirs.Run, b.plan.Name, name) }

// ObjectID is the id of the object that protects the guest.
const ObjectID = "cgs0"

// Protect adds the object that protects the guest. A property that this QEMU does not
// know is an error and never left out, for each has a meaning for the measurement or
// for the guest's safety.
func (b *Builder) Protect(o Object, props map[string]any) error {
	names := slices.Sorted(maps.Keys(props))
	if err := b.Facts.Needs("launch the guest as its spec says", o, names...); err != nil {
		return err
	}
	props["qom-type"], props["id"] = o.Type, ObjectID
	b.protect(argv.JSON(props))
	return nil
}

func (b *Builder) protect(object string) {
	b.Option("-object", object)
	b.Machine.Set("confidential-guest-support", ObjectID)
}
