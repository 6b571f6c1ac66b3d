package launcher

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/keyring"
	"github.com/vmlatch/vmlatch/launcher/internal/argv"
)

// Key is a key that a start makes for a VM: in a keyring that only the launching
// thread and QEMU have, so that it is gone when both are.
type Key struct {
	Type        keyring.Type `json:"type"` // mktme; user, where that is emulated
	Description string       `json:"description"`
	// Payload has no key in it: the processor makes one.
	Payload string `json:"payload"`

	object string // the argument with the handle's place
}

// keyHandle stands in a plan's command line for the handle of its key, which
// exists only during a start. It is the value of a JSON property.
const keyHandle = "@key@"

// The emulated platform's object. The launcher does not link the emulator; a test
// holds the two together.
const (
	emulatedMKTMEObject   = "mktme-guest"
	emulatedMKTMEProperty = "key-handle"
)

func validateMKTME(s *Spec) error {
	m := s.Confidential.MKTME
	switch {
	case m.Object == "" || m.HandleProperty == "":
		return s.errorf("confidential.mktme", "no released QEMU has an object for MKTME: name your own's with object and handle-property")
	case m.Algorithm != "" && m.Algorithm != keyring.MKTMEAlgorithm:
		return s.errorf("confidential.mktme.algorithm", "%q: must be %s", m.Algorithm, keyring.MKTMEAlgorithm)
	case s.Accel == "tcg":
		return s.errorf("accel", "tcg cannot encrypt memory; to try the launch without hardware, start with --emulate")
	}
	if err := s.foreignKeys(); err != nil {
		return err
	}
	return s.latchOnly("MKTME has no attestation at all: its keys are the host's")
}

// mktmeObject adds the object that the spec names, with the handle of the VM's key.
func mktmeObject(b *builder) error {
	m := b.spec.Confidential.MKTME
	kind := keyring.TypeMKTME
	if b.plan.Emulated {
		kind = keyring.User
		if m.Object != emulatedMKTMEObject || m.HandleProperty != emulatedMKTMEProperty {
			return b.spec.errorf("confidential.mktme", "the emulated platform's object is %s, with %s", emulatedMKTMEObject, emulatedMKTMEProperty)
		}
	} else if err := b.facts.needs("give a guest a key of its own", m.Object, m.HandleProperty); err != nil {
		return err
	}
	payload, err := keyring.MKTME{Source: keyring.FromCPU}.Payload()
	if err != nil {
		return err
	}
	object := argv.JSON(map[string]any{"qom-type": m.Object, "id": objectID, m.HandleProperty: keyHandle})
	b.plan.Key = &Key{Type: kind, Description: "vmlatch:" + b.spec.Name, Payload: string(payload), object: object}
	b.opt("-object", object)
	b.machine.Set("confidential-guest-support", objectID)
	b.choose("key", string(kind)+", made by the processor", "technology mktme")
	return nil
}

// withKey makes the plan's key and calls fork with the command line that names it,
// on a thread of its own that has the key. The thread ends then, and QEMU alone has
// it; a machine in the foreground is tied to the thread that forks it, so there the
// thread ends with the machine, when ended is closed.
func (s *starter) withKey(fork func(argv []string) (int, error), ended <-chan struct{}) (int, error) {
	k := s.plan.Key
	if k == nil {
		s.opt.Step("fork")
		return fork(s.plan.Argv)
	}
	type result struct {
		pid int
		err error
	}
	forked := make(chan result, 1)
	go func() {
		err := keyring.Apart(func(r *keyring.Ring) error {
			s.opt.Step("key")
			serial, err := r.Add(keyring.Key{Type: k.Type, Description: k.Description, Payload: []byte(k.Payload)})
			if err != nil {
				return err
			}
			s.opt.Step("fork")
			pid, err := fork(k.command(s.plan.Argv, serial))
			if err != nil {
				return err
			}
			forked <- result{pid, nil}
			if s.opt.Foreground {
				<-ended
			}
			return nil
		})
		if errors.Is(err, keyring.ErrNoType) {
			err = &HostError{Want: "make a key for the guest", Why: err.Error(), Fix: "MKTME keys take Intel's patches for Linux; TDX, which released kernels have, is the way to a guest with a key of its own"}
		}
		if err != nil {
			forked <- result{0, err}
		}
	}()
	r := <-forked
	return r.pid, r.err
}

// command is the plan's command line with the key's handle in the object that takes
// it, and nowhere else.
func (k *Key) command(argv []string, serial keyring.Serial) []string {
	argv = slices.Clone(argv)
	if i := slices.Index(argv, k.object); i > 0 && argv[i-1] == "-object" {
		argv[i] = strings.Replace(k.object, strconv.Quote(keyHandle), strconv.Itoa(int(serial)), 1)
	}
	return argv
}
