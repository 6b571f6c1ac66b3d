package tee

import (
	"context"
	"io"
	"slices"

	"github.com/vmlatch/vmlatch/firmware/igvm"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/spec"
	"github.com/vmlatch/vmlatch/qmp"
)

// technology is one way to protect a guest.
type technology interface {
	traits() plan.Traits
	// keys are those of [confidential] that it knows.
	keys(c *Confidential) []key
	// only are the values for it alone, where there are several technologies to choose
	// from; nil if it has none.
	only(c *Confidential) *Only
	// complete fills in defaults and refuses what makes no sense for it.
	complete(g *Guest) error
	// lacks tells what it needs and a firmware image does not have; "" for nothing.
	lacks(img *ovmf.Image) string
	// knows is an error unless QEMU has what it needs.
	knows(g *Guest, f *plan.Facts) error
	// second is an error if it should not be taken where another technology may be.
	second(g *Guest, f *plan.Facts) error
	// satisfy is an error unless the guest's policy is at least as strict as the one
	// that a disk image demands.
	satisfy(g *Guest, words []string, d *spec.Demands) error
	// build adds its QEMU object.
	build(g *Guest, b *plan.Builder) error
	// query checks, once the machine is built, that it is what was asked for.
	query(ctx context.Context, g *Guest, p *plan.Plan, q qmp.Executor) (*rundir.SEV, error)
	checks() []Check
	// hasVendor reports whether the host has processors of its vendor.
	hasVendor(*host.Report) bool
}

// all lists the technologies.
func all() []technology { return []technology{none{}, sevs{}, sevs{es: true}, snp{}, tdx{}, mktme{}} }

// Confidential is the table [confidential], with the keys of all technologies.
type Confidential struct {
	// Technology is a name, a list of names, or "any-confidential".
	Technology   any      `toml:"technology"`
	Policy       []string `toml:"policy"`
	KernelHashes *bool    `toml:"kernel-hashes"`

	sevKeys
	snpKeys
	tdxKeys
	mktmeKeys
}

// base is what technologies have in common; each replaces what it does in its own way.
type base struct{}

func (base) keys(*Confidential) []key          { return nil }
func (base) only(*Confidential) *Only          { return nil }
func (base) lacks(*ovmf.Image) string          { return "" }
func (base) build(*Guest, *plan.Builder) error { return nil }
func (base) checks() []Check                   { return nil }
func (base) hasVendor(h *host.Report) bool     { return h.SEV != nil }

func (base) second(*Guest, *plan.Facts) error { return nil }

func (base) knows(g *Guest, f *plan.Facts) error { return g.needs(f, g.Traits().Object) }

func (base) satisfy(*Guest, []string, *spec.Demands) error { return nil }

// query asks for the run state, which is all that can be asked.
func (base) query(ctx context.Context, _ *Guest, _ *plan.Plan, q qmp.Executor) (*rundir.SEV, error) {
	return nil, paused(ctx, q)
}

// Names returns the names that a spec may give, in their order.
func Names() []string {
	var names []string
	for _, t := range all() {
		names = append(names, t.traits().Name)
	}
	return names
}

// Traits returns what is constant about a technology.
func Traits(name string) (plan.Traits, bool) {
	t, ok := byName(name)
	if !ok {
		return plan.Traits{}, false
	}
	return traitsOf(t), true
}

// traitsOf adds with whom a technology shares its slots.
func traitsOf(t technology) plan.Traits {
	traits := t.traits()
	if traits.Pool != "" {
		traits.Sharing = Sharing(traits.Pool)
	}
	return traits
}

// Sharing lists the technologies that take their slots from a pool.
func Sharing(pool string) (names []string) {
	for _, t := range all() {
		if traits := t.traits(); traits.Pool == pool {
			names = append(names, traits.Name)
		}
	}
	return names
}

func byName(name string) (technology, bool) {
	list := all()
	i := slices.IndexFunc(list, func(t technology) bool { return t.traits().Name == name })
	if i < 0 {
		return nil, false
	}
	return list[i], true
}

// Objects are the types of the QEMU objects that protect guests.
func Objects() (types []string) {
	for _, t := range all() {
		if o := t.traits().Object.Type; o != "" && !slices.Contains(types, o) {
			types = append(types, o)
		}
	}
	return types
}

// Query checks, once QEMU has built the machine, that it is what was asked for. It
// returns what the platform said; nil if it says nothing.
func (g *Guest) Query(ctx context.Context, p *plan.Plan, q qmp.Executor) (*rundir.SEV, error) {
	return g.tech.query(ctx, g, p, q)
}

// ReadImage looks into a firmware image; nil if it cannot be read.
func ReadImage(image string) *plan.Image {
	f, err := regular.Open(image) // a pipe could not be waited for
	if err != nil {
		return nil
	}
	_ = f.Close()
	found := &plan.Image{Lacks: map[string]string{}}
	if ovmf.WithFile(image, func(b []byte) error { readImage(b, found); return nil }) != nil {
		return nil
	}
	return found
}

// reach is where the memory ends that metadata names, without what lies in the image.
func reach(img *ovmf.Image) map[string]uint64 {
	ends := map[string]uint64{}
	sections, _ := img.SEVMetadata() // if it is broken, the image lacks it
	for _, s := range sections {
		ends[host.SNP] = max(ends[host.SNP], uint64(s.GPA)+uint64(s.Size))
	}
	td, _ := img.TDXMetadata()
	for _, s := range td {
		if s.Type >= ovmf.TDXSectionTDHOB {
			ends[host.TDX] = max(ends[host.TDX], s.GPA+s.Size)
		}
	}
	return ends
}

func readImage(b []byte, to *plan.Image) {
	if to.IGVM = igvm.Is(b); to.IGVM {
		return
	}
	to.Size = len(b)
	to.Odd, _ = ovmf.Looks(b)
	img, err := ovmf.Parse(b)
	if err != nil {
		img = &ovmf.Image{} // it offers nothing
	}
	if a, ok, err := img.HashArea(); err == nil && ok {
		to.HashArea = a.Size > 0
	}
	if a, ok, err := img.SecretArea(); err == nil && ok {
		to.SecretArea = a.Size > 0
	}
	to.PlatformKey = img.HasPlatformKey()
	to.Reach = reach(img)
	for _, t := range all() {
		to.Lacks[t.traits().Name] = t.lacks(img)
	}
}

// IsIGVM reports whether a file begins as IGVM files do.
func IsIGVM(file string) bool {
	f, err := regular.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	var magic [4]byte
	_, err = io.ReadFull(f, magic[:])
	return err == nil && igvm.Is(magic[:])
}
