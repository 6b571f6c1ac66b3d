package plan

import (
	"slices"
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/keyring"
	"github.com/vmlatch/vmlatch/launcher/internal/argv"
)

// Key is a key that a start makes for a VM: in a keyring that only the launching
// thread and QEMU have, so that it is gone when both are.
type Key struct {
	Type        keyring.Type `json:"type"`
	Description string       `json:"description"`
	Payload     string       `json:"payload"` // says how the key comes to be, and is not the key

	object string // the argument with the handle's place
}

// keyHandle stands in a plan's command line for the handle of its key, which exists
// only during a start. It is the value of a JSON property.
const keyHandle = "@key@"

// ProtectByKey adds the object that protects the guest, with the handle of a key that
// is made for it.
func (b *Builder) ProtectByKey(object, property string, kind keyring.Type, payload []byte) {
	o := argv.JSON(map[string]any{"qom-type": object, "id": ObjectID, property: keyHandle})
	b.plan.Key = &Key{Type: kind, Description: "vmlatch:" + b.Guest.Name, Payload: string(payload), object: o}
	b.protect(o)
}

// Command is a command line with the key's handle in the object that takes it, and
// nowhere else.
func (k *Key) Command(argv []string, serial keyring.Serial) []string {
	argv = slices.Clone(argv)
	if i := slices.Index(argv, k.object); i > 0 && argv[i-1] == "-object" {
		argv[i] = strings.Replace(k.object, strconv.Quote(keyHandle), strconv.Itoa(int(serial)), 1)
	}
	return argv
}
