package tee

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/credential"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/spec"
)

// Spec is what a user wrote about one VM. It may leave open which technology the
// guest gets.
type Spec struct {
	guest        plan.Guest
	confidential Confidential
	asked        []string // technologies to choose from, preferred first
}

// Load reads a spec file. Relative paths in it are relative to it.
func Load(file string) (*Spec, error) {
	return parse(func(t spec.Tables) (*spec.File, error) { return spec.Load(file, t) })
}

// Parse reads a spec. file names it in errors; relative paths start from dir. Unknown
// keys are errors, as is what makes no sense whatever the technology.
func Parse(b []byte, file, dir string) (*Spec, error) {
	return parse(func(t spec.Tables) (*spec.File, error) { return spec.Parse(b, file, dir, t) })
}

func parse(read func(spec.Tables) (*spec.File, error)) (*Spec, error) {
	s := &Spec{guest: plan.NewGuest(), confidential: Confidential{Technology: none{}.traits().Name}}
	tables := s.guest.Tables()
	tables["confidential"] = &s.confidential
	var err error
	if s.guest.File, err = read(tables); err != nil {
		return nil, err
	}
	if s.asked, err = readTechnologies(s.guest.File, s.confidential.Technology); err != nil {
		return nil, err
	}
	if err := s.files(); err != nil {
		return nil, err
	}
	return s, s.guest.Complete()
}

// files makes the paths of technologies' keys absolute.
func (s *Spec) files() error {
	f := s.guest.File
	for _, k := range s.confidential.files() {
		path, err := *k.file, error(nil)
		if k.content {
			path, err = credential.Path(path)
		}
		if err != nil {
			e := f.Errorf("confidential."+k.name, "%v", err)
			e.Fix = "the unit must have LoadCredential=NAME:FILE, and start vmlatch; elsewhere name the file itself"
			return e
		}
		if err := f.NoNUL(path); err != nil {
			return err
		}
		*k.file = f.Abs(path)
	}
	return nil
}

// Name is the VM's name.
func (s *Spec) Name() string { return s.guest.Name }

// File is what the spec was read from.
func (s *Spec) File() *spec.File { return s.guest.File }

// Guest is the guest before a technology is chosen for it.
func (s *Spec) Guest() plan.Guest { return s.guest }

// Asked lists the technologies that the spec asks for, preferred first.
func (s *Spec) Asked() []string { return slices.Clone(s.asked) }

// Named is the spec under another name for its VM.
func (s *Spec) Named(name string) (*Spec, error) {
	c := *s
	var err error
	c.guest, err = s.guest.Named(name)
	return &c, err
}

// ForTables is the spec for a machine that is only looked at, also while the guest runs: it has the
// guest's devices, or others of their kind in their places, and leaves its TPM, disks, networks and
// directories alone. What would show in the tables, and cannot be had twice, is an error.
func (s *Spec) ForTables() (*Spec, error) {
	c := *s
	switch {
	case len(c.guest.PCI) > 0:
		return nil, c.guest.File.Errorf(
			"pci",
			"the tables of a guest with devices of the host are known only when it runs",
		)
	case len(c.guest.Config.Credentials) > 0:
		return nil, c.guest.File.Errorf(
			"config.credentials",
			"they would stand in the tables, for whoever gets those",
		)
	}
	if c.guest.VSock.On() {
		c.guest.VSock.Elsewhere()
	}
	c.guest.Shares = slices.Clone(c.guest.Shares)
	for i := range c.guest.Shares {
		c.guest.Shares[i].Mode, c.guest.Shares[i].ReadOnly = plan.Share9P, true
	}
	c.guest.TPM.State, c.guest.TPM.Key = plan.TPMEphemeral, ""
	c.guest.Disks, c.guest.Networks = slices.Clone(s.guest.Disks), slices.Clone(s.guest.Networks)
	for i := range c.guest.Disks {
		c.guest.Disks[i].OnlyLook()
	}
	for i := range c.guest.Networks {
		c.guest.Networks[i] = plan.Network{Mode: "user", MAC: c.guest.Networks[i].MAC, Restrict: true}
	}
	return &c, nil
}

// Guest is a VM for which a technology was chosen.
type Guest struct {
	plan.Guest
	Confidential Confidential

	tech   technology
	traits plan.Traits // of tech
	asked  []string
}

// Traits are the constants of the guest's technology.
func (g *Guest) Traits() plan.Traits { return g.traits }

// Build adds the technology's QEMU object.
func (g *Guest) Build(b *plan.Builder) error { return g.tech.build(g, b) }

// Several reports whether there was a choice between technologies.
func (g *Guest) Several() bool { return len(g.asked) > 1 }

// For is the guest as it is for one technology, filled in. An error says why it makes
// no sense; the guest is then what could be filled in.
func (s *Spec) For(name string) (*Guest, error) {
	t, _ := byName(name)
	g := &Guest{Guest: s.guest, Confidential: s.confidential, tech: t, traits: traitsOf(t), asked: s.asked}
	if only := t.only(&g.Confidential); only != nil {
		if len(only.Policy) > 0 {
			g.Confidential.Policy = only.Policy
		}
		if only.CPU != "" {
			g.CPU = only.CPU
		}
		if only.Until != "" {
			g.Latch.Until = only.Until
		}
	}
	if on := g.Confidential.KernelHashes; on != nil {
		g.KernelHashes = *on
	} else {
		g.KernelHashes = g.Kernel.Image != "" && g.traits.KernelHashes
	}
	return g, t.complete(g)
}

// Candidates are the technologies to try in their order, and what asked for them: the
// spec, or a disk image where the spec does not.
func (s *Spec) Candidates(demands []*spec.Demands) (names []string, from string, err error) {
	const key = "confidential.technology"
	names, from = s.asked, s.guest.File.From(key)
	if !s.guest.File.Has(key) {
		if d := demanded(demands); d != nil {
			names, from = d.Technologies, "demanded by "+d.File.Path
		}
	}
	for _, t := range all() {
		name := t.traits().Name
		if only := t.only(&s.confidential); only != nil && !only.empty() && !slices.Contains(names, name) {
			return nil, "", s.guest.File.Errorf("confidential."+name,
				"is for a technology that is not asked for here (%s)", strings.Join(names, ", "))
		}
	}
	if len(names) > 1 {
		from = "the first of " + strings.Join(names, ", ") + " that works here (" + from + ")"
	}
	return names, from, nil
}

// MayBe reports whether the VM may get a technology with a trait.
func (s *Spec) MayBe(demands []*spec.Demands, trait func(plan.Traits) bool) bool {
	names := s.Asked()
	if d := demanded(demands); d != nil {
		names = append(names, d.Technologies...)
	}
	return slices.ContainsFunc(names, func(n string) bool {
		t, ok := byName(n)
		return ok && trait(t.traits())
	})
}

// demanded are the demands of the first image that wants protection; nil if none does.
func demanded(list []*spec.Demands) *spec.Demands {
	for _, d := range list {
		if len(d.Technologies) > 0 && !slices.Contains(d.Technologies, none{}.traits().Name) {
			return d
		}
	}
	return nil
}

// CheckDemands refuses demands that make no sense.
func CheckDemands(d *spec.Demands) error {
	if d.Firmware != "" {
		if err := plan.OneOf(d.File, "firmware", d.Firmware, plan.FirmwareBIOS, plan.FirmwareUEFI); err != nil {
			return err
		}
	}
	for _, n := range d.Technologies {
		if _, ok := byName(n); !ok {
			return d.Errorf("technologies", "%q: must be one of %s", n, strings.Join(Names(), ", "))
		}
	}
	for name, words := range d.Policy {
		t, ok := byName(name)
		p, has := t.(interface{ parse(words []string) error })
		err := fmt.Errorf("there are policies of %s", strings.Join(withPolicy(), ", "))
		if ok && has {
			err = p.parse(words)
		}
		if err != nil {
			return d.Errorf("policy."+name, "%v", err)
		}
	}
	return nil
}

func withPolicy() (names []string) {
	for _, t := range all() {
		if _, ok := t.(interface{ parse(words []string) error }); ok {
			names = append(names, t.traits().Name)
		}
	}
	return names
}

// Satisfy compares a guest with the demands of its disk images. Where the spec leaves
// something open the image decides.
func (g *Guest) Satisfy(demands []*spec.Demands) error {
	name := g.Traits().Name
	for _, d := range demands {
		if len(d.Technologies) > 0 && !slices.Contains(d.Technologies, name) {
			return g.conflict("confidential.technology", name, d, "technologies", strings.Join(d.Technologies, ", "))
		}
		if d.Firmware != "" {
			have := g.Firmware.Type
			if have == "" && (g.Firmware.Image != "" || len(g.Firmware.Features) > 0) {
				have = plan.FirmwareUEFI
			}
			if have == "" {
				g.Firmware.Type = d.Firmware
			} else if have != d.Firmware {
				return g.conflict("firmware", have, d, "firmware", d.Firmware)
			}
		}
		if words, ok := d.Policy[name]; ok {
			if err := g.tech.satisfy(g, words, d); err != nil {
				return err
			}
		}
	}
	return nil
}

// Fits is an error if host, QEMU or firmware cannot do the guest's technology. among
// means that another may be taken instead.
func (g *Guest) Fits(f *plan.Facts, among bool) error {
	t := g.Traits()
	if t.Confidential && !f.Emulated() {
		if r := f.Host.Technology(t.Name); r.Usable == host.No {
			return &fault.Error{
				Kind: fault.Host, Op: "encrypt memory with " + t.Name, Err: errors.New(r.Why), Fix: r.Fix,
				Check: fault.TechnologyUsable, Hardware: true,
			}
		}
	}
	if among {
		if err := g.tech.second(g, f); err != nil {
			return err
		}
	}
	if err := g.tech.knows(g, f); err != nil {
		return err
	}
	if missing := g.lacks(f.Image); among && missing != "" {
		return g.File.Errorf("firmware.image", "%s: %s", g.Firmware.Image, missing)
	}
	return nil
}

// lacks tells what the guest needs and its firmware does not have, kernel hashes
// included; "" for nothing, or if the image could not be read.
func (g *Guest) lacks(img *plan.Image) string {
	missing := g.LacksTables(img)
	if img != nil && missing == "" && !img.IGVM && g.KernelHashes && !img.HashArea {
		return "it has no area for kernel hashes"
	}
	return missing
}

// LacksTables tells which tables the guest's technology needs and an image does not
// have; "" for none, or if the image could not be read.
func (g *Guest) LacksTables(img *plan.Image) string {
	if img == nil || img.IGVM {
		return ""
	}
	return img.Lacks[g.Traits().Name]
}

// needs is an error unless QEMU has an object.
func (g *Guest) needs(f *plan.Facts, o plan.Object) error {
	return f.Needs("launch a guest of technology "+g.Traits().Name, o)
}

// Knows is an error unless QEMU has what the guest's technology needs.
func (g *Guest) Knows(f *plan.Facts) error { return g.tech.knows(g, f) }
