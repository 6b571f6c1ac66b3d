//go:build !quick

package launcher

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/launcher/fault"
)

const mktmeGuest = `
name = "vm"
memory = "64MiB"
[confidential]
technology = "mktme"
mktme = { object = "mktme-guest", handle-property = "key-handle" }
[latch]
until = "nothing"
`

// TestKey: QEMU gets the handle of a key that was made for it, in a ring of its own.
func TestKey(t *testing.T) {
	for _, foreground := range []bool{false, true} {
		h := newMachineTest(t)
		var steps []string
		ctx := WithTrace(t.Context(), Trace{Step: func(s string) { steps = append(steps, s) }})
		m, err := h.plan(mktmeGuest).Start(ctx, StartOptions{Hold: true, Foreground: foreground})
		if err != nil {
			t.Fatal(err)
		}
		h.end(m)
		b, err := os.ReadFile("/proc/" + strconv.Itoa(m.rec.PID) + "/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		if !regexp.MustCompile(`"key-handle":[0-9]+`).Match(b) || strings.Contains(string(b), "@key@") {
			t.Errorf("foreground %t: the command line %q has no handle", foreground, b)
		}
		if got := strings.Join(steps, " "); !strings.Contains(got, "record key fork") {
			t.Errorf("foreground %t: steps %s, want the key made before the fork", foreground, got)
		}
		if err := m.Kill(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// TestKeyFails: without its key, or its QEMU, nothing of the VM is left.
func TestKeyFails(t *testing.T) {
	h := newMachineTest(t)
	p := h.plan(mktmeGuest)
	p.Key.Type = "no-such-type"
	if _, err := p.Start(t.Context(), StartOptions{Hold: true}); fault.As(err) == nil {
		t.Errorf("a key of an unknown type: %v", err)
	}
	h.nothingLeft("without a key")
	p = h.plan(mktmeGuest)
	p.Argv[0] = "/nonexistent/qemu"
	if _, err := p.Start(t.Context(), StartOptions{Hold: true}); err == nil || !strings.Contains(err.Error(), "exec") {
		t.Errorf("without its QEMU: %v", err)
	}
	h.nothingLeft("without QEMU")
}
