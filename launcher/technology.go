package launcher

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/internal/argv"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/qmp"
)

// Names of technologies.
const (
	TechnologyNone  = "none"
	TechnologySEV   = host.SEV
	TechnologySEVES = host.SEVES
	TechnologySNP   = host.SNP
	TechnologyTDX   = host.TDX
	TechnologyMKTME = host.MKTME
)

// technology is one way to protect a guest: a row of this table. Besides, only the
// rows' own functions, the keys of a spec and the checks know it by name.
type technology struct {
	name     string
	object   string // type of the QEMU object; "" for plain VMs and named adapters
	feature  string // what firmware must be able to do (QEMU, firmware.json, FirmwareFeature)
	pool     string // whose encryption slots it takes where no hardware says
	validate func(*Spec) error
	build    func(*builder) error // adds the QEMU object; nil for plain VMs
	// query checks, once the machine is built, that it is what was asked for; nil
	// where the run state is all that can be asked.
	query func(context.Context, *qmp.Conn, *Plan) (*rundir.SEV, error)

	measurable    bool   // the platform shows a measurement while the guest is paused
	kernelHashes  bool   // a kernel given to QEMU can be measured
	model         string // CPU model where none is named; "" leaves it to the accelerator
	modelMeasured bool   // the registers that a CPU starts with are measured
	private       bool   // private memory comes from guest_memfd: nothing is pinned, and SMM cannot be
	registers     bool   // register state is protected
	locked        bool   // QEMU pins the guest's memory

	covers     []string // what is measured besides the firmware image
	kernelBy   string   // who else measures a kernel
	unmeasured string   // why nothing is measured
}

// technologyTable is a function, for its rows' functions look into it.
func technologyTable() []technology {
	return []technology{
		{name: TechnologyNone, validate: validatePlain, unmeasured: "a plain VM is not measured"},
		{
			name: TechnologySEV, object: "sev-guest", feature: "amd-sev", pool: "sev", validate: validateSEV, build: sevObject, query: querySEV,
			measurable: true, kernelHashes: true, locked: true, covers: sevCovers,
		},
		{
			name: TechnologySEVES, object: "sev-guest", feature: "amd-sev-es", pool: "sev-es", validate: validateSEV, build: sevObject, query: querySEV,
			measurable: true, kernelHashes: true, locked: true, registers: true, model: measuredModel, modelMeasured: true, covers: sevCovers,
		},
		{
			name: TechnologySNP, object: "sev-snp-guest", feature: "amd-sev-snp", pool: "sev-es", validate: validateSNP, build: snpObject, query: querySNP,
			kernelHashes: true, private: true, registers: true, model: measuredModel, modelMeasured: true,
		},
		{
			name: TechnologyTDX, object: "tdx-guest", feature: "intel-tdx", pool: "tdx", validate: validateTDX, build: tdxObject,
			private: true, registers: true, model: "host",
			covers: []string{"attributes of the trust domain (in quotes)"}, kernelBy: "by the firmware, in RTMR1 and RTMR2",
		},
		{name: TechnologyMKTME, pool: "mktme", validate: validateMKTME, build: mktmeObject, unmeasured: "MKTME encrypts memory and measures nothing"},
	}
}

// sevCovers is what the measurement's MAC covers besides the digest.
var sevCovers = []string{"guest policy", "platform firmware version"}

// measuredModel is the CPU model where it is measured and none is named. It has a
// version: what a bare name stands for can change. Older QEMUs have an older
// version, whose registers start alike.
const measuredModel = "EPYC-v4"

var measuredModels = []string{measuredModel, "EPYC-v3", "EPYC-v2"}

// Technologies returns the names that a spec may give.
func Technologies() []string {
	var names []string
	for _, t := range technologyTable() {
		names = append(names, t.name)
	}
	return names
}

func technologyByName(name string) (technology, bool) {
	for _, t := range technologyTable() {
		if t.name == name {
			return t, true
		}
	}
	return technology{}, false
}

// keyOf is a key of [confidential] that only some technologies have.
type keyOf struct {
	key   string
	value string
	of    []string
}

// foreignKeys refuses keys that the spec's technology gives no meaning.
func (s *Spec) foreignKeys() error {
	c := &s.Confidential
	sevs := []string{TechnologySEV, TechnologySEVES}
	tdx := []string{TechnologyTDX}
	for _, k := range []keyOf{
		{"policy", strings.Join(c.Policy, ","), append(slices.Clone(sevs), TechnologySNP, TechnologyTDX)},
		{"owner-cert", c.OwnerCert, sevs},
		{"session", c.Session, sevs},
		{"vmsa", c.VMSA, sevs},
		{"id-block", c.IDBlock, []string{TechnologySNP}},
		{"id-auth", c.IDAuth, []string{TechnologySNP}},
		{"host-data", c.HostData, []string{TechnologySNP}},
		{"mrconfigid", c.MRConfigID, tdx},
		{"mrowner", c.MROwner, tdx},
		{"mrownerconfig", c.MROwnerConfig, tdx},
		{"quote-socket", c.QuoteSocket, tdx},
		{"mktme", c.MKTME.Object + c.MKTME.HandleProperty + c.MKTME.Algorithm, []string{TechnologyMKTME}},
	} {
		if k.value == "" || slices.Contains(k.of, s.tech) {
			continue
		}
		if len(s.asked) > 1 && slices.ContainsFunc(s.asked, func(n string) bool { return slices.Contains(k.of, n) }) {
			continue // it is for another one of those asked for
		}
		return s.errorf("confidential."+k.key, "technology %q takes none; it is for %s", s.tech, strings.Join(k.of, ", "))
	}
	if c.KernelHashes != nil && *c.KernelHashes {
		if t, _ := technologyByName(s.tech); !t.kernelHashes {
			return s.errorf("confidential.kernel-hashes", "technology %q has no such hashes", s.tech)
		}
	}
	return nil
}

func validatePlain(s *Spec) error {
	if err := s.foreignKeys(); err != nil {
		return err
	}
	if s.Latch.Until != UntilNone {
		return s.errorf("latch.until", "%q: a plain VM is not measured, so nothing can open a latch", s.Latch.Until)
	}
	return nil
}

// validateConfidential checks what all confidential guests share.
func validateConfidential(s *Spec) error {
	if err := s.foreignKeys(); err != nil {
		return err
	}
	t, _ := technologyByName(s.tech)
	switch {
	case s.Accel == "tcg":
		return s.errorf("accel", "tcg cannot encrypt memory; to try the launch without hardware, start with --emulate")
	case s.Firmware.Image == "" && len(s.Firmware.Features) == 0:
		return s.errorf("firmware", `a confidential guest needs firmware that knows %s: give image, or features = [%q]`, s.tech, t.feature)
	}
	return nil
}

// latchOnly checks latch.until of a technology that no owner is asked for.
func (s *Spec) latchOnly(why string) error {
	switch {
	case s.Latch.Until == UntilNothing && len(s.Latch.Owner) == 0:
		return nil
	case len(s.Latch.Owner) > 0:
		return s.errorf("latch.owner", "%s asks no owner before the guest runs", s.tech)
	case s.Latch.Until == "" || s.Latch.Until == UntilSecret:
		return s.errorf("latch.until", `%s; write until = "nothing" to accept that`, why)
	}
	return s.errorf("latch.until", `%q: must be "nothing"`, s.Latch.Until)
}

// since says which QEMU versions have an object or a property.
var since = map[string]string{
	"sev-guest": "2.12", "sev-guest.kernel-hashes": "6.2", "sev-guest.legacy-vm-type": "9.1",
	"sev-snp-guest": "9.1", "tdx-guest": "10.1", "igvm-cfg": "10.1, if it was built with libigvm", "memory-backend-memfd": "2.12, on Linux",
}

// knows says which object or property the QEMU lacks.
func (s *Spec) knows(f *Facts, t technology) error {
	object := t.object
	if t.name == TechnologyMKTME {
		if f.emulated() {
			return nil // the emulator has it, and QEMU need not
		}
		object = s.Confidential.MKTME.Object
	}
	return f.needs("launch a guest of technology "+t.name, object)
}

// needs is an error unless QEMU has the object and its properties.
func (f *Facts) needs(want, object string, properties ...string) error {
	if f.Info == nil || !f.Info.HasObject(object) {
		return f.lacks(want, object, "object "+object)
	}
	for _, p := range properties {
		if !f.Info.HasObject(object, p) {
			return f.lacks(want, object+"."+p, "property "+p+" of "+object)
		}
	}
	return nil
}

func (f *Facts) lacks(want, key, what string) error {
	version, fix := "of unknown version", "no released QEMU has it"
	if f.Info != nil {
		version = f.Info.Version
	}
	if v, ok := since[key]; ok {
		fix = "install QEMU " + v + " or newer, or name another one with qemu = in the spec"
		what += " (QEMU " + v + " or newer has it)"
	}
	return &HostError{Want: want, Why: fmt.Sprintf("QEMU %s (%s) has no %s", version, f.QEMU, what), Fix: fix, Check: "qemu-object"}
}

// addObject adds the confidential object. A property that this QEMU does not know
// is an error and never left out, for each means something for the measurement or
// for the guest's safety.
func (b *builder) addObject(object string, props map[string]any) error {
	var names []string
	for name := range props {
		names = append(names, name)
	}
	slices.Sort(names)
	if err := b.facts.needs("launch the guest as its spec says", object, names...); err != nil {
		return err
	}
	props["qom-type"], props["id"] = object, objectID
	b.opt("-object", argv.JSON(props))
	b.machine.Set("confidential-guest-support", objectID)
	return nil
}

// objectID is the id of the confidential object.
const objectID = "cgs0"

// resets says whether a guest may be reset: its QEMU launches it anew then, and no
// latch that an owner opened is passed by that.
func (f *Facts) resets(s *Spec) bool {
	t, _ := technologyByName(s.tech)
	return f.Info != nil && f.Info.HasFeature(t.object, "confidential-guest-reset") && s.Latch.Until != UntilSecret
}
