package twin

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/firmware/swtee/internal/front"
	"github.com/vmlatch/vmlatch/qmp"
)

// oracles are the commands that QEMU's confidential code answers.
var oracles = map[string]bool{
	"query-sev": true, "query-sev-capabilities": true, "query-sev-launch-measure": true,
	"query-sev-attestation-report": true,
}

// handle answers a client's command, or says who is to.
func (t *machine) handle(ctx context.Context, command string, args json.RawMessage) (any, error) {
	if words, ok := forbidden[command]; ok {
		return nil, front.Generic("%s", words)
	}
	switch {
	case command == "human-monitor-command" && isInfoSEV(args):
		return t.ask(ctx, command, args)
	case command == "human-monitor-command" && !t.harmless(args):
		return nil, front.Generic("swtee: of HMP only what \"info\" shows of a confidential guest on silicon")
	case command == "cont":
		return nil, t.cont(ctx)
	case command == "system_reset" && !t.isLaunched():
		return nil, front.Generic("swtee: the guest has not been launched yet")
	case command == "sev-inject-launch-secret":
		return t.inject(ctx, args)
	case oracles[command] || t.aboutObject(command, args):
		return t.ask(ctx, command, args)
	case command == "device_add" && hotplug(args):
		return nil, front.Generic("swtee: a confidential guest gets no CPUs and no memory while it runs")
	}
	return nil, front.Pass
}

func (t *machine) isLaunched() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.launched
}

// ask has the oracle answer.
func (t *machine) ask(ctx context.Context, command string, args json.RawMessage) (any, error) {
	ret, err := front.Forward(ctx, t.oracle.conn, command, args)
	if errors.Is(err, qmp.ErrClosed) {
		return nil, front.HangUp
	}
	return ret, err
}

// aboutObject reports whether a command is about the confidential object, which the twin lacks.
func (t *machine) aboutObject(command string, args json.RawMessage) bool {
	if command != "qom-get" && command != "qom-list" && command != "qom-set" {
		return false
	}
	var a struct{ Path string }
	if json.Unmarshal(args, &a) != nil {
		return false
	}
	id := t.lines.object.Props["id"]
	return a.Path == id || a.Path == "/objects/"+id || a.Path == "/machine/confidential-guest-support"
}

// hidden are topics of HMP's info that show registers, which SEV-ES, SEV-SNP and TDX encrypt, or
// what is in memory.
var hidden = []string{"registers", "lapic", "tlb", "mem"}

// isInfoSEV reports whether a command of HMP is one that QEMU's confidential code answers.
func isInfoSEV(args json.RawMessage) bool {
	var a struct {
		Line string `json:"command-line"`
	}
	return json.Unmarshal(args, &a) == nil && strings.Join(strings.Fields(a.Line), " ") == "info sev"
}

// harmless reports whether a command of HMP shows only what silicon shows, too, and changes
// nothing: others would go around the launch.
func (t *machine) harmless(args json.RawMessage) bool {
	var a struct {
		Line string `json:"command-line"`
	}
	if json.Unmarshal(args, &a) != nil {
		return false
	}
	words := strings.Fields(a.Line)
	if len(words) < 2 || words[0] != "info" {
		return false
	}
	return !slices.Contains(hidden, words[1]) || words[1] == "registers" && !t.lines.hidesRegisters()
}

// hotplug reports whether a device is a CPU or memory.
func hotplug(args json.RawMessage) bool {
	var a struct{ Driver string }
	if json.Unmarshal(args, &a) != nil {
		return false
	}
	return hotplugged(a.Driver)
}

func hotplugged(driver string) bool {
	return strings.HasSuffix(driver, "-cpu") || strings.HasSuffix(driver, "dimm") ||
		strings.HasPrefix(driver, "virtio-mem") || strings.HasPrefix(driver, "virtio-pmem")
}

// inject has the platform authenticate and decrypt a secret, and puts it where the guest looks.
func (t *machine) inject(ctx context.Context, args json.RawMessage) (any, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ret, err := t.ask(ctx, "sev-inject-launch-secret", args)
	if err != nil {
		return nil, err
	}
	s := t.oracle.record.TakeSecret()
	if s == nil || s.GPA == swtee.UnknownGPA {
		return nil, front.Generic("swtee: the secret went to no place that the guest has")
	}
	defer clear(s.Plain)
	if err := t.qemu.Test.Write(s.GPA, s.Plain); err != nil {
		return nil, front.Generic("swtee: the secret does not reach the guest: %v", err)
	}
	return ret, nil
}
