package tcg

import (
	"fmt"
	"strconv"

	"github.com/vmlatch/vmlatch/firmware/swtee/internal/cmdline"
	"github.com/vmlatch/vmlatch/keyring"
)

// The object for MKTME, which no released QEMU has: a guest whose
// memory is encrypted with a key that the host's kernel keeps. It is launched
// without a measurement, because MKTME has none.
const (
	MKTMEObject   = "mktme-guest"
	MKTMEProperty = "key-handle" // serial of a key that QEMU must possess
)

// NeedsTCG names the part of a command line that only the TCG mode supports, "" if there
// is none.
func NeedsTCG(argv []string) string {
	if len(argv) == 0 {
		return ""
	}
	opts, err := cmdline.Parse(argv[1:])
	if err != nil {
		return ""
	}
	for _, o := range opts {
		if o.Name != "object" {
			continue
		}
		if obj, err := cmdline.ParseObject(o.Value); err == nil && obj.Type == MKTMEObject {
			return MKTMEObject
		}
	}
	return ""
}

// checkKey checks that this process, and so QEMU, which inherits its keyrings,
// possesses the key: it must be in the session keyring, and not merely known by its
// number.
func checkKey(handle string) error {
	n, err := strconv.ParseInt(handle, 0, 32)
	if err != nil || n <= 0 {
		text := fmt.Sprintf("-object %s: %s=%s: not a key's handle", MKTMEObject, MKTMEProperty, handle)
		return &errQEMU{[]string{text}}
	}
	refused := func(err error) error {
		text := fmt.Sprintf("-object %s: key %d is not possessed by this process: %v", MKTMEObject, n, err)
		return &errQEMU{[]string{text}}
	}
	ring, err := keyring.Inherited()
	if err != nil {
		return refused(err)
	}
	d, err := ring.Describe(keyring.Serial(n))
	if err != nil {
		return refused(err)
	}
	// A key of type user takes its place if the kernel has no MKTME.
	if d.Type != keyring.TypeMKTME && d.Type != keyring.User {
		return refused(fmt.Errorf("it is of type %s", d.Type))
	}
	found, err := ring.Search(d.Type, d.Text)
	if err == nil && found != keyring.Serial(n) {
		err = fmt.Errorf("its place in the keyring has key %d", found)
	}
	if err != nil {
		return refused(err)
	}
	return nil
}
