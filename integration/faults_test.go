package integration

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/integration/qemus"
)

// TestFaultsOfThePlatform: what the launcher says when the platform fails.
func TestFaultsOfThePlatform(t *testing.T) {
	qemus.Each(t, "7.2", func(t *testing.T, qemu string) {
		h := under(t)
		h.session()
		h.useQEMU(qemu)
		for fault, want := range map[string]string{
			"INIT=EBUSY,INIT2=EBUSY":                     "cause: the platform has no free encryption slot",
			"LAUNCH_START=RESOURCE_LIMIT":                "cause: the platform has no free encryption slot",
			"PLATFORM_STATUS=INVALID_PLATFORM_STATE":     "cause: the secure processor is not initialised, or was reset",
			"LAUNCH_START=INVALID_PLATFORM_STATE":        "cause: the secure processor is not initialised, or was reset",
			"LAUNCH_UPDATE_DATA:2=reset":                 "cause: the platform has lost this guest",
			"LAUNCH_UPDATE_DATA=INVALID_ADDRESS":         "cause: the secure processor refused a step",
			"LAUNCH_START=POLICY_FAILURE":                "cause: the policy asks for newer SEV firmware",
			"LAUNCH_START=BAD_MEASUREMENT":               "cause: the platform cannot unwrap the session",
			"LAUNCH_MEASURE=BAD_MEASUREMENT":             "cause: the platform did not complete the launch measurement",
			"LAUNCH_MEASURE=reset":                       "cause: the platform has lost this guest",
			"LAUNCH_START=delay:50ms,LAUNCH_START=EPERM": "QEMU did not start",
		} {
			out := h.fails(fault, "start", "guest.toml", "--emulate", "--hold")
			if !strings.Contains(out, want) {
				t.Errorf("%s: %s\nwant %q", fault, out, want)
			}
			if strings.Contains(out, "swtee: emulated platform") || strings.Contains(out, "deprecated") {
				t.Errorf("%s: what is no reason is told as one: %s", fault, out)
			}
		}
		h.clearEnded()
		if left := leftovers(h.work); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
}

// fails runs a vmlatch command with a fault; it must fail, with a hint.
func (h *host) fails(fault string, args ...string) string {
	h.t.Helper()
	cmd := h.command("vmlatch", args...)
	cmd.Env = append(cmd.Env, "SWTEE_FAULT="+fault)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		h.t.Errorf("%s with %s: %v\n%s", args[0], fault, err, out)
	}
	return string(out)
}

// TestFaultsOfALaunchedGuest: the platform fails after the guest was measured.
func TestFaultsOfALaunchedGuest(t *testing.T) {
	qemus.Each(t, "7.2", func(t *testing.T, qemu string) {
		for _, c := range []struct{ fault, command, want string }{
			{"LAUNCH_SECRET=reset", "inject", "cause: the platform has lost this guest"},
			{"LAUNCH_SECRET=RESOURCE_LIMIT", "inject", "cause: the platform has no free encryption slot"},
			{"LAUNCH_FINISH=INVALID_GUEST", "release", "cause: the platform has lost this guest"},
			{"LAUNCH_FINISH=INVALID_PLATFORM_STATE", "release", "cause: the secure processor is not initialised, or was reset"},
		} {
			h := under(t)
			h.env = append(h.env, "SWTEE_FAULT="+c.fault)
			h.session()
			h.useQEMU(qemu)
			h.run("vmlatch", "start", "guest.toml", "--emulate", "--hold")
			h.write("m.json", h.run("vmlatch", "measure", "guest"))
			h.write("passphrase", "correct horse battery\n")
			h.run("latchkey", "verify", "--owner", "guest.owner", "--measurement", "m.json", "--firmware", "OVMF.amdsev.fd", "--kernel", "vmlinuz", "--initrd", "initrd.img", "--cmdline", guestCmdline)
			h.run("latchkey", "secret", "--owner", "guest.owner", "--measurement", "m.json", "--entry", "disk=passphrase", "--out", "p.json")
			args := []string{"inject", "guest", "p.json"}
			if c.command == "release" {
				h.run("vmlatch", args...)
				args = []string{"release", "guest"}
			}
			if out := h.fails(c.fault, args...); !strings.Contains(out, c.want) {
				t.Errorf("%s: %s\nwant %q", c.fault, out, c.want)
			}
			killAll(t, h.work)
		}
	})
}
