package launcher

import "fmt"

// unfit are QMP commands that cannot be right for a confidential guest: what they
// would write or read is its memory, encrypted with a key that stays in this
// platform (QEMU, target/i386/sev.c and kvm/tdx.c add migration blockers for the
// same reason; nova refuses both in its API).
var unfit = map[string]string{
	"migrate": "migration", "migrate-incoming": "migration", "migrate-recover": "migration", "migrate-start-postcopy": "migration", "xen-save-devices-state": "migration",
	"snapshot-save": "suspending to disk", "snapshot-load": "suspending to disk",
	"dump-guest-memory": "a memory dump",
}

// CommandError is a QMP command that a guest's technology forbids.
type CommandError struct{ Name, Command, What, Technology string }

func (e *CommandError) Error() string {
	return fmt.Sprintf("%s: %s: no %s of a %s guest: its memory is encrypted with a key that cannot leave this platform", e.Name, e.Command, e.What, e.Technology)
}

// CheckCommand refuses a QMP command that would be no use for the machine's
// technology, or that would let its guest run past a closed latch. Who has the
// monitor has the VM: it guards against slips.
func (m *Machine) CheckCommand(command string) error {
	if what := unfit[command]; what != "" && m.tech.build != nil {
		return &CommandError{m.rec.Name, command, what, m.tech.name}
	}
	if !m.rec.Latch.Open && (command == "cont" || command == "human-monitor-command") {
		return fmt.Errorf("%s: %w", m.rec.Name, ErrLatchClosed)
	}
	return nil
}
