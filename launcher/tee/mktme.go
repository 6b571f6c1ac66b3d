package tee

import (
	"cmp"

	"github.com/vmlatch/vmlatch/keyring"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/plan"
)

// mktme is Intel's memory encryption with keys that the host holds. No released QEMU
// or kernel has it.
type mktme struct{ base }

// mktmeKeys are the keys of [confidential] for MKTME: the object of a patched QEMU
// that takes a key handle.
type mktmeKeys struct {
	MKTME struct {
		Object         string `toml:"object"`
		HandleProperty string `toml:"handle-property"`
		Algorithm      string `toml:"algorithm"`
	} `toml:"mktme"`
}

func (mktme) keys(c *Confidential) []key {
	return []key{textKey("mktme", c.MKTME.Object+c.MKTME.HandleProperty+c.MKTME.Algorithm)}
}

func (mktme) traits() plan.Traits {
	return plan.Traits{
		Name: host.MKTME, Pool: "mktme", Vendor: "Intel", Confidential: true, KernelLog: true,
		Unmeasured: "MKTME encrypts memory and measures nothing",
	}
}

// The emulated platform's object. The launcher does not link the emulator; a test
// holds the two together.
const (
	emulatedMKTMEObject   = "mktme-guest"
	emulatedMKTMEProperty = "key-handle"
)

// Patched are the types of objects that only the spec knows, to ask QEMU about.
func (s *Spec) Patched() (types []string) {
	if o := s.confidential.MKTME.Object; o != "" {
		types = append(types, o)
	}
	return types
}

func (mktme) complete(g *Guest) error {
	m := g.Confidential.MKTME
	switch {
	case m.Object == "" || m.HandleProperty == "":
		return g.File.Errorf("confidential.mktme", "no released QEMU has an object for MKTME:"+
			" name your own's with object and handle-property")
	case m.Algorithm != "" && m.Algorithm != keyring.MKTMEAlgorithm:
		return g.File.Errorf("confidential.mktme.algorithm", "%q: must be %s", m.Algorithm, keyring.MKTMEAlgorithm)
	case g.Accel == "tcg":
		return g.notTCG()
	}
	if err := cmp.Or(g.foreign(), g.noBroker()); err != nil {
		return err
	}
	return g.latchNothing("MKTME has no attestation at all: its keys are the host's")
}

func (mktme) knows(g *Guest, f *plan.Facts) error {
	if f.Emulated() {
		return nil // the emulator has it, and QEMU need not
	}
	return g.needs(f, plan.Object{Type: g.Confidential.MKTME.Object})
}

// build adds the object that the spec names, with the handle of the VM's key.
func (mktme) build(g *Guest, b *plan.Builder) error {
	m := g.Confidential.MKTME
	kind := keyring.TypeMKTME
	if b.Emulated() {
		kind = keyring.User
		if m.Object != emulatedMKTMEObject || m.HandleProperty != emulatedMKTMEProperty {
			return g.File.Errorf("confidential.mktme", "the emulated platform's object is %s, with %s",
				emulatedMKTMEObject, emulatedMKTMEProperty)
		}
	} else {
		err := b.Facts.Needs("give a guest a key of its own", plan.Object{Type: m.Object}, m.HandleProperty)
		if err != nil {
			return err
		}
	}
	payload, err := keyring.MKTME{Source: keyring.FromCPU}.Payload()
	if err != nil {
		return err
	}
	b.ProtectByKey(m.Object, m.HandleProperty, kind, payload)
	b.Choose("key", string(kind)+", made by the processor", "technology "+host.MKTME)
	return nil
}
