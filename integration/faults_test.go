package integration

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/integration/qemus"
	"github.com/vmlatch/vmlatch/launcher/advice"
	"github.com/vmlatch/vmlatch/launcher/fault"
)

// Causes that several faults have.
const (
	noSlot         = "cause: the platform has no free encryption slot"
	notInitialised = "cause: the secure processor is not initialised, or was reset"
	guestLost      = "cause: the platform has lost this guest"
)

// TestFaultsOfThePlatform: what the launcher says when the platform fails.
func TestFaultsOfThePlatform(t *testing.T) {
	t.Parallel()
	qemus.Each(t, "7.2", func(t *testing.T, qemu string) {
		h := under(t)
		h.session()
		h.useQEMU(qemu)
		for fault, want := range map[string]string{
			"INIT=EBUSY,INIT2=EBUSY":                     noSlot,
			"LAUNCH_START=RESOURCE_LIMIT":                noSlot,
			"PLATFORM_STATUS=INVALID_PLATFORM_STATE":     notInitialised,
			"LAUNCH_START=INVALID_PLATFORM_STATE":        notInitialised,
			"LAUNCH_UPDATE_DATA:2=reset":                 guestLost,
			"LAUNCH_UPDATE_DATA=INVALID_ADDRESS":         "cause: the secure processor refused a step",
			"LAUNCH_START=POLICY_FAILURE":                "cause: the policy asks for newer SEV firmware",
			"LAUNCH_START=BAD_MEASUREMENT":               "cause: the platform cannot unwrap the session",
			"LAUNCH_MEASURE=BAD_MEASUREMENT":             "cause: the platform did not complete the launch measurement",
			"LAUNCH_MEASURE=reset":                       guestLost,
			"LAUNCH_START=delay:50ms,LAUNCH_START=EPERM": "QEMU did not start",
		} {
			out := h.fails(fault, "start", "guest.toml", "--emulate", "--hold")
			h.shows(fault, out, want)
			if strings.Contains(out, "swtee: emulated platform") || strings.Contains(out, "deprecated") {
				t.Errorf("%s: output unrelated to the failure is given as its reason: %s", fault, out)
			}
		}
		h.clearEnded()
		if left := leftovers(h.work); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
}

// TestFaultsOfALaunchedGuest: the platform fails after the guest was measured.
func TestFaultsOfALaunchedGuest(t *testing.T) {
	t.Parallel()
	qemus.Each(t, "7.2", func(t *testing.T, qemu string) {
		for _, c := range []struct{ fault, command, want string }{
			{"LAUNCH_SECRET=reset", "inject", guestLost},
			{"LAUNCH_SECRET=RESOURCE_LIMIT", "inject", noSlot},
			{"LAUNCH_FINISH=INVALID_GUEST", "release", guestLost},
			{"LAUNCH_FINISH=INVALID_PLATFORM_STATE", "release", notInitialised},
		} {
			h := under(t)
			h.env = append(h.env, "SWTEE_FAULT="+c.fault)
			h.session()
			h.useQEMU(qemu)
			h.run("vmlatch", "start", "guest.toml", "--emulate", "--hold")
			h.measured()
			h.latchkey("verify")
			h.packet()
			args := []string{"inject", "guest", "p.json"}
			if c.command == "release" {
				h.run("vmlatch", args...)
				args = []string{"release", "guest"}
			}
			h.shows(c.fault, h.fails(c.fault, args...), c.want)
			killAll(t, h.work)
		}
	})
}

// generic causes give no reason: a code that gets one of them is not explained.
var generic = []string{
	"the secure processor refused a step",
	"QEMU cannot use the secure processor",
	"the TDX module refused a step",
}

// TestEveryErrorExplained: each firmware status, each kernel error and each refusal
// by QEMU that a launcher can encounter has its own cause.
func TestEveryErrorExplained(t *testing.T) {
	t.Parallel()
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
		{"sev-snp", "SNP_LAUNCH_FINISH=BAD_MEASUREMENT", "launch digest differs from the one in the ID block"},
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
		switch s {
		case sev.StatusOK:
		case sev.StatusInvalidAddress, sev.StatusInvalidLength: // mistakes in QEMU have no specific cause
		default:
			faults = append(faults, fault{"sev", "LAUNCH_START=" + s.Name(), ""})
		}
	}
	for _, f := range faults {
		if specs[f.tech] == "" {
			continue
		}
		out := h.fails(f.fault, "start", f.tech+".toml", "--emulate", "--slot-wait", "0s")
		h.shows(f.fault, out, "hint: cause: ", f.want)
		if n := strings.Count(out, "hint: "); n < 2 {
			t.Errorf("%s: %d hints, want a cause and a fix: %s", f.fault, n, out)
		}
		if f.want == "" && slices.ContainsFunc(generic, func(g string) bool { return strings.Contains(out, g) }) {
			t.Errorf("%s is not explained: %s", f.fault, out)
		}
	}
	h.clearEnded()
	waitNothing(t, h.work)
}

var emulatorsLog = regexp.MustCompile(`(?m)^time=.* emulated=true.*$`)

// TestQEMUsOwnWords: errors that a check normally finds first are also explained as
// each version of QEMU words them.
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
	b[len(b)-40] ^= 1 // in the footer's GUID: the image has no table then
	tableless := filepath.Join(t.TempDir(), "tableless.fd")
	if err := os.WriteFile(tableless, b, 0o600); err != nil {
		t.Fatal(err)
	}
	machine := []string{
		"-nodefaults", "-display", "none", "-m", "64", "-accel", "kvm",
		"-machine", "q35,confidential-guest-support=s0", "-S",
	}
	const object = ",id=s0,cbitpos=51,reduced-phys-bits=1"
	for want, c := range map[string]struct {
		from, object, firmware string
		more                   []string
	}{
		"no area for kernel hashes": {
			from:     "7.2",
			object:   "sev-guest" + object + ",kernel-hashes=on",
			firmware: plainFirmware,
			more:     []string{"-kernel", "vmlinuz"},
		},
		"no metadata for the technology": {
			from:     "10.0",
			object:   "sev-snp-guest" + object,
			firmware: tableless,
			more:     []string{"-cpu", "EPYC-v4"},
		},
		"cannot map the firmware": {from: "7.2", object: "sev-guest" + object, firmware: half},
		"too old for it": {
			from:     "7.2",
			object:   "sev-guest" + object + ",certs-path=x",
			firmware: plainFirmware,
		},
	} {
		qemus.Each(t, c.from, func(t *testing.T, qemu string) {
			h := newHost(t)
			args := append([]string{"--fake-kvm", "--", qemu}, machine...)
			args = append(append(args, "-object", c.object, "-bios", c.firmware), c.more...)
			cmd := h.command("swtee", args...)
			ctx := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
			defer ctx.Stop()
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatalf("it starts: %s", out)
			}
			words := emulatorsLog.ReplaceAllString(string(out), "") // which vmlatch leaves out too
			a := advice.For(&fault.Error{Kind: fault.QEMU, Op: "x", Err: errors.New(words)})
			if !strings.Contains(a.Cause, want) {
				t.Errorf("%s\n%+v, want %q", out, a, want)
			}
		})
	}
}
