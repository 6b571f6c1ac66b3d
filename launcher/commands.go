package launcher

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/vmlatch/vmlatch/qmp"
)

// unfit are commands that cannot be right for a confidential guest: what they
// would write or read is its memory, encrypted with a key that stays in this
// platform (QEMU, target/i386/sev.c and kvm/tdx.c add migration blockers for the
// same reason; nova refuses both in its API).
var unfit = map[string]string{
	"migrate": "migrate", "migrate-incoming": "migrate", "migrate-recover": "migrate", "migrate-start-postcopy": "migrate", "xen-save-devices-state": "migrate",
	"snapshot-save": "suspend to disk", "snapshot-load": "suspend to disk", "savevm": "suspend to disk", "loadvm": "suspend to disk",
	"dump-guest-memory": "dump",
}

// CommandError is a command that a guest's technology forbids.
type CommandError struct{ Name, Command, What, Technology string }

func (e *CommandError) Error() string {
	return fmt.Sprintf("%s: %s: nobody can %s a %s guest: its memory is encrypted with a key that cannot leave this platform", e.Name, e.Command, e.What, e.Technology)
}

// CheckCommand refuses a QMP command that would be no use for the machine's
// technology, or that would let its guest run past a closed latch, also where it is
// wrapped into human-monitor-command. Who has the monitor has the VM: it guards
// against slips.
func (m *Machine) CheckCommand(command string, args json.RawMessage) error {
	const human = "human-monitor-command"
	words := []string{command}
	if command == human {
		var h qmp.Human
		if json.Unmarshal(args, &h) == nil {
			word := strings.TrimSpace(h.CommandLine)
			if end := strings.IndexAny(word, " \t\n\v\f\r/"); end >= 0 { // as QEMU ends it (monitor/hmp.c)
				word = word[:end]
			}
			words = append(words, strings.ReplaceAll(word, "_", "-"))
		}
	}
	for _, w := range words {
		if what := unfit[w]; what != "" && m.tech.build != nil {
			return &CommandError{m.rec.Name, w, what, m.tech.name}
		}
	}
	if !m.rec.Latch.Open && (command == "cont" || command == human) {
		return fmt.Errorf("%s: %w", m.rec.Name, ErrLatchClosed)
	}
	return nil
}
