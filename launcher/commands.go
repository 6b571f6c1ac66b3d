package launcher

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/vmlatch/vmlatch/launcher/fault"
)

// forbidden are commands that cannot be right for a confidential guest: what they
// would write or read is its memory, encrypted with a key that stays in this
// platform (QEMU, target/i386/sev.c and kvm/tdx.c add migration blockers for the
// same reason; nova refuses both in its API).
var forbidden = map[string]string{
	"migrate":                "migrate",
	"migrate-incoming":       "migrate",
	"migrate-recover":        "migrate",
	"migrate-start-postcopy": "migrate",
	"xen-save-devices-state": "migrate",

	"snapshot-save": "suspend to disk",
	"snapshot-load": "suspend to disk",
	"savevm":        "suspend to disk",
	"loadvm":        "suspend to disk",

	"dump-guest-memory": "dump",
}

// CheckCommand refuses a QMP command that makes no sense for the machine's technology,
// or that would let its guest run past a closed latch, also where it is wrapped into
// human-monitor-command. It guards against slips: a user of the monitor controls the
// VM anyway.
func (m *Machine) CheckCommand(command string, args json.RawMessage) error {
	const human = "human-monitor-command"
	words := []string{command}
	if command == human {
		var h struct {
			CommandLine string `json:"command-line"`
		}
		if json.Unmarshal(args, &h) == nil {
			word := strings.TrimSpace(h.CommandLine)
			if end := strings.IndexAny(word, " \t\n\v\f\r/"); end >= 0 { // as QEMU ends it (monitor/hmp.c)
				word = word[:end]
			}
			words = append(words, strings.ReplaceAll(word, "_", "-"))
		}
	}
	for _, w := range words {
		if what := forbidden[w]; what != "" && m.tech.Confidential {
			return m.cannot(w, what)
		}
	}
	if !m.rec.Latch.Open && (command == "cont" || command == human) {
		return m.latchClosed(ErrLatchClosed)
	}
	return nil
}

// cannot is the error of a command that the guest's technology forbids.
func (m *Machine) cannot(command, what string) error {
	return &fault.Error{
		Kind: fault.Refused, Op: m.rec.Name,
		Err: fmt.Errorf("%s: it is impossible to %s a %s guest: its memory is encrypted with a key"+
			" that cannot leave this platform", command, what, m.tech.Name),
		Fix: "to move a VM, stop it and start it on the other host:" +
			" that is a new launch, which its owner verifies again",
	}
}
