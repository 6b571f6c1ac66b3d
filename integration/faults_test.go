package integration

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/integration/qemus"
	"github.com/vmlatch/vmlatch/launcher/advice"
	"github.com/vmlatch/vmlatch/launcher/fault"
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

// generic causes name no reason: a code that gets one is not explained.
var generic = []string{"the secure processor refused a step", "QEMU cannot use the secure processor", "the TDX module refused a step"}

// TestEveryErrorExplained: each status of the firmware, each error of the kernel
// and each of QEMU's own refusals that a launcher meets has a cause of its own.
func TestEveryErrorExplained(t *testing.T) {
	h := under(t)
	h.env = append(h.env, "VMLATCH_CONFIG="+filepath.Join(h.work, "host.toml"))
	h.write("host.toml", "")
	h.write("disk.raw", strings.Repeat("\x00", 4096))
	specs := map[string]string{}
	for _, tech := range []string{"sev", "sev-snp", "tdx"} {
		if _, err := os.Stat(tdxFirmware); err != nil && tech == "tdx" {
			continue
		}
		specs[tech] = technologySpec(tech, qemus.Newest(t))
		h.write(tech+".toml", specs[tech])
	}
	type fault struct{ tech, fault, want string }
	faults := []fault{
		{"sev-snp", "SNP_LAUNCH_START=EINVAL", "does not take the policy"},
		{"sev-snp", "SNP_LAUNCH_START=RESOURCE_LIMIT", "no free encryption slot"},
		{"sev-snp", "SNP_LAUNCH_START=UNSUPPORTED", "does not have a feature"},
		{"sev-snp", "SNP_LAUNCH_UPDATE:5=INVALID_PARAM", "CPU with these features"},
		{"sev-snp", "SNP_LAUNCH_UPDATE:1=INVALID_PARAM", "does not take a parameter"},
		{"sev-snp", "SNP_LAUNCH_FINISH=BAD_MEASUREMENT", "another digest than the ID block"},
		{"sev-snp", "SNP_LAUNCH_FINISH=POLICY_FAILURE", "for another policy"},
		{"sev-snp", "SNP_LAUNCH_START=POLICY_FAILURE", "does not allow the policy"},
		{"sev-snp", "INIT2=EBUSY", "no free encryption slot"},
		{"sev-snp", "INIT2=ENOMEM", "too little memory to set the guest up"},
		{"tdx", "TDX_CAPABILITIES=EIO", "does not offer what the launch asks for"},
		{"tdx", "TDX_INIT_VM=EBUSY", "no free encryption slot"},
		{"tdx", "TDX_INIT_VM=ENOSPC", "no free encryption slot"},
		{"tdx", "TDX_INIT_VM=EAGAIN", "no random numbers left"},
		{"tdx", "TDX_INIT_VM=EINVAL", "the TDX module refused a step"},
		{"tdx", "TDX_FINALIZE_VM=EIO", "the TDX module refused a step"},
	}
	for _, s := range sev.Statuses() {
		if s != sev.StatusOK && s != sev.StatusInvalidAddress && s != sev.StatusInvalidLength { // mistakes of QEMU's, with no cause of their own
			faults = append(faults, fault{"sev", "LAUNCH_START=" + s.Name(), ""})
		}
	}
	for _, f := range faults {
		if specs[f.tech] == "" {
			continue
		}
		out := h.fails(f.fault, "start", f.tech+".toml", "--emulate", "--slot-wait", "0s")
		if !strings.Contains(out, "hint: cause: ") || !strings.Contains(out, f.want) || strings.Count(out, "hint: ") < 2 {
			t.Errorf("%s: %s\nwant %q", f.fault, out, f.want)
		}
		if f.want == "" && slices.ContainsFunc(generic, func(g string) bool { return strings.Contains(out, g) }) {
			t.Errorf("%s is not explained: %s", f.fault, out)
		}
	}
	h.clearEnded()
	waitNothing(t, h.work)
}

// TestQEMUsOwnWords: errors that a check finds first are explained all the same, in
// each QEMU's words.
func TestQEMUsOwnWords(t *testing.T) {
	const plainFirmware, half = "/usr/share/ovmf/OVMF.fd", "/usr/share/OVMF/OVMF_CODE_4M.fd"
	if _, err := os.Stat(plainFirmware); err != nil {
		t.Skipf("%v: run make setup", err)
	}
	needGuest(t)
	b, err := os.ReadFile(filepath.Join(top(), ".cache/guest/OVMF.amdsev.fd"))
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-40] ^= 1 // of the footer's GUID: an image without a table
	tableless := filepath.Join(t.TempDir(), "tableless.fd")
	if err := os.WriteFile(tableless, b, 0o600); err != nil {
		t.Fatal(err)
	}
	machine := []string{"-nodefaults", "-display", "none", "-m", "64", "-accel", "kvm", "-machine", "q35,confidential-guest-support=s0", "-S"}
	for want, c := range map[string]struct {
		from string
		args []string
	}{
		"no area for kernel hashes":      {"7.2", []string{"-object", "sev-guest,id=s0,cbitpos=51,reduced-phys-bits=1,kernel-hashes=on", "-kernel", "vmlinuz", "-bios", plainFirmware}},
		"no metadata for the technology": {"10.0", []string{"-object", "sev-snp-guest,id=s0,cbitpos=51,reduced-phys-bits=1", "-bios", tableless, "-cpu", "EPYC-v4"}},
		"cannot map the firmware":        {"7.2", []string{"-object", "sev-guest,id=s0,cbitpos=51,reduced-phys-bits=1", "-bios", half}},
		"too old for it":                 {"7.2", []string{"-object", "sev-guest,id=s0,cbitpos=51,reduced-phys-bits=1,certs-path=x", "-bios", plainFirmware}},
	} {
		qemus.Each(t, c.from, func(t *testing.T, qemu string) {
			h := newHost(t)
			cmd := h.command("swtee", append(append([]string{"--fake-kvm", "--", qemu}, machine...), c.args...)...)
			ctx := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
			defer ctx.Stop()
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatalf("it starts: %s", out)
			}
			a := advice.For(&fault.Error{Kind: fault.QEMU, Op: "x", Err: errors.New(string(out))})
			if !strings.Contains(a.Cause, want) {
				t.Errorf("%s\n%+v, want %q", out, a, want)
			}
		})
	}
}
