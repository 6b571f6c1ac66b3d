package launcher

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/firmware/swtee/tcg"
	"github.com/vmlatch/vmlatch/integration/qemus"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/qmp"
)

// withIGVM is a QEMU that was built with libigvm.
func withIGVM() *host.QEMU {
	q := recordedQEMU("11.1")
	q.Objects["igvm-cfg"] = []string{"file"}
	return q
}

var testRoot = rundir.Root{Run: "/run/vmlatch", State: "/var/lib/vmlatch"}

// TestPlanGolden compares command lines, one option a line. Refresh the files
// with -update, and read what changed.
func TestPlanGolden(t *testing.T) {
	for name, c := range map[string]struct {
		spec  string
		facts Facts
	}{
		"plain-tcg": {`name = "vm"`, machine(noKVM("no /dev/kvm"))},
		"plain-kvm": {`
			name = "vm"
			memory = "2GiB"
			cpus = 4
			[firmware]
			type = "uefi"
			[[disk]]
			image = "a,b.qcow2"
			[[disk]]
			image = "/dev/vg/data"
			read-only = true
			[[network]]
			mode = "user"
			forward = ["tcp:127.0.0.1:2222:22"]
			mac = "52:54:00:00:00:01"`, machine(nil)},
		"sev": {sevSpec, machine(nil)},
		"sev-emulated": {sevSpec, machine(func(f *Facts) {
			noKVM("none")(f)
			f.Emulator = []string{"/usr/bin/swtee", "--platform", "/p", "--"}
		})},
		"snp":      {snpSpec, machine(nil)},
		"snp-igvm": {strings.NewReplacer("kernel-hashes = true", "", "[kernel]", "", `image = "k"`, "").Replace(snpSpec), machine(func(f *Facts) { f.IGVMFile, f.Info = true, withIGVM() })},
		"sev-features-disk": {`
			name = "vm"
			[firmware]
			features = ["amd-sev"]
			[confidential]
			technology = "sev"
			[latch]
			until = "nothing"
			[[disk]]
			image = "d.raw"
			[[network]]
			mode = "user"`, machine(nil)},
	} {
		t.Run(name, func(t *testing.T) {
			spec, err := ParseSpec([]byte(c.spec), "vm.toml", "/specs")
			if err != nil {
				t.Fatal(err)
			}
			plan, err := NewPlan(spec, c.facts, testRoot)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, filepath.Join("testdata/plan", name+".args"), strings.Join(plan.Argv, "\n")+"\n")
			again, err := NewPlan(spec, c.facts, testRoot)
			if err != nil || !slices.Equal(plan.Argv, again.Argv) {
				t.Error("equal inputs give another plan")
			}
			if _, err := json.Marshal(plan); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestPlanMatrix compares the command lines of every technology on every QEMU of
// the matrix; where a QEMU cannot, the error is what is compared.
func TestPlanMatrix(t *testing.T) {
	replaced := func(tech, old, with string) string {
		return strings.NewReplacer(`"sev-snp"`, `"`+tech+`"`, old, with).Replace(snpSpec)
	}
	const snpOnly = "policy = [\"smt\", \"abi=1.55\"]\nhost-data = \"0100000000000000000000000000000000000000000000000000000000000002\""
	specs := map[string]string{
		"sev":     strings.Replace(replaced("sev", snpOnly, ""), `cpu = "EPYC-Genoa"`, "", 1),
		"sev-es":  replaced("sev-es", snpOnly, `policy = ["no-debug", "no-key-sharing", "no-send"]`),
		"sev-snp": snpSpec,
		"tdx": strings.NewReplacer(`cpu = "EPYC-Genoa"`, "", "kernel-hashes = true", "quote-socket = \"/run/qgs\"").
			Replace(replaced("tdx", snpOnly, "mrconfigid = \""+strings.Repeat("0a", 48)+"\"")),
		"mktme": strings.NewReplacer(`cpu = "EPYC-Genoa"`, "", "kernel-hashes = true", "").
			Replace(replaced("mktme", snpOnly, "mktme = { object = \"mktme-guest\", handle-property = \"key-handle\" }")),
	}
	for tech, text := range specs {
		for _, version := range qemus.Versions {
			t.Run(tech+"@"+version, func(t *testing.T) {
				spec, err := ParseSpec([]byte(text), "vm.toml", "/specs")
				if err != nil {
					t.Fatal(err)
				}
				plan, err := NewPlan(spec, machine(func(f *Facts) { f.Info = recordedQEMU(version) }), testRoot)
				got := ""
				if err != nil {
					got = "refused: " + err.Error() + "\n"
				} else {
					got = strings.Join(plan.Argv, "\n") + "\n"
				}
				golden(t, filepath.Join("testdata/plan", tech+"@"+version+".args"), got)
			})
		}
	}
	// A patched QEMU, as the adapter of a spec names it.
	spec, err := ParseSpec([]byte(specs["mktme"]), "vm.toml", "/specs")
	if err != nil {
		t.Fatal(err)
	}
	plan, err := NewPlan(spec, machine(func(f *Facts) {
		f.Info = recordedQEMU("11.1")
		f.Info.Objects["mktme-guest"] = []string{"key-handle"}
	}), testRoot)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/plan/mktme@patched.args", strings.Join(plan.Argv, "\n")+"\n")
}

const snpSpec = `
name = "vm"
cpus = 2
cpu = "EPYC-Genoa"
[firmware]
image = "fw"
[kernel]
image = "k"
[confidential]
technology = "sev-snp"
kernel-hashes = true
policy = ["smt", "abi=1.55"]
host-data = "0100000000000000000000000000000000000000000000000000000000000002"
[latch]
until = "nothing"
`

const sevSpec = `
name = "vm"
memory = "512MiB"
[firmware]
image = "OVMF.amdsev.fd"
[kernel]
image = "vmlinuz"
initrd = "initrd,1.img"
cmdline = "console=ttyS0 a,b"
[confidential]
technology = "sev"
policy = ["no-debug", "no-key-sharing", "sev"]
owner-cert = "vm.godh"
session = "vm.session"
`

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

func TestSpecErrors(t *testing.T) {
	sevWith := func(old, replacement string) string { return strings.Replace(sevSpec, old, replacement, 1) }
	for name, c := range map[string]struct{ spec, want string }{
		"no TOML":          {"name = ", "vm.toml:1:"},
		"wrong type":       {"cpus = \"two\"", "vm.toml:1:"},
		"name":             {`name = "a/b"`, "must be 1 to 63"},
		"cpus":             {"cpus = 0", "must be 1 to 512"},
		"memory small":     {`memory = "1MiB"`, "at least 16MiB"},
		"memory unit":      {`memory = "4G"`, "write 4GiB"},
		"memory bare":      {`memory = "512"`, "has no unit"},
		"memory float":     {`memory = "1.5GiB"`, "whole number"},
		"memory overflow":  {`memory = "99999999999TiB"`, "too large"},
		"accel":            {`accel = "xen"`, "auto, kvm or tcg"},
		"technology":       {"[confidential]\ntechnology = \"sgx\"", "must be one of none, sev"},
		"plain policy":     {"[confidential]\npolicy = [\"no-debug\"]", "takes none; it is for sev, sev-es, sev-snp, tdx"},
		"plain latch":      {"[latch]\nuntil = \"secret\"", "a plain VM is not measured"},
		"initrd alone":     {"[kernel]\ninitrd = \"x\"", "need a kernel"},
		"disk image":       {"[[disk]]\nformat = \"raw\"", "image is missing"},
		"disk format":      {"[[disk]]\nimage = \"x\"\nformat = \"vmdk\"", "must be raw or qcow2"},
		"network":          {"[[network]]\nmode = \"bridge\"", "must be user"},
		"firmware type":    {"[firmware]\ntype = \"efi\"", "must be bios or uefi"},
		"NUL":              {"[kernel]\nimage = \"x\"\ncmdline = \"a\\u0000b\"", "NUL"},
		"policy word":      {sevWith(`"no-debug"`, `"nodebug"`), `unknown word "nodebug": did you mean "no-debug"?`},
		"policy debug":     {sevWith(`"no-debug", `, ``), "lacks no-debug"},
		"policy es":        {sevWith(`"sev"]`, `"es"]`), "sev-es"},
		"session alone":    {sevWith(`owner-cert = "vm.godh"`, ""), "go together"},
		"no firmware":      {sevWith(`image = "OVMF.amdsev.fd"`, ""), "needs firmware that knows sev"},
		"vars":             {sevWith("[kernel]", "vars = \"v\"\n[kernel]"), "is not measured"},
		"tcg":              {sevWith("memory", "accel = \"tcg\"\nmemory"), "cannot encrypt"},
		"machine":          {sevWith("memory", "machine = \"pc\"\nmemory"), "need q35"},
		"until":            {sevSpec + "[latch]\nuntil = \"whenever\"", `must be "secret" or "nothing"`},
		"owner, nothing":   {sevSpec + "[latch]\nuntil = \"nothing\"\nowner = [\"x\"]", "asks no owner"},
		"timeout":          {"[latch]\ntimeout = \"-1s\"", "must be positive"},
		"hashes no kernel": {"[firmware]\nimage = \"x\"\n[confidential]\ntechnology = \"sev\"\nkernel-hashes = true\n[latch]\nuntil=\"nothing\"", "no kernel to measure"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseSpec([]byte(c.spec), "vm.toml", "/specs")
			var typed *SpecError
			if !errors.As(err, &typed) || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "vm.toml") {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestUnknownKeys(t *testing.T) {
	for spec, want := range map[string]SpecError{
		"nme = \"x\"": {Line: 1, Key: "nme", Near: "name"},
		"name = \"x\"\n[firmware]\nimgae = \"x\"": {Line: 3, Key: "firmware.imgae", Near: "image"},
		"[confidental]\ntechnology = \"sev\"":     {Line: 1, Key: "confidental", Near: "confidential"},
		"zzzz = 1":                                {Line: 1, Key: "zzzz"},
	} {
		_, err := ParseSpec([]byte(spec), "f", "/")
		var got *SpecError
		if !errors.As(err, &got) || got.Line != want.Line || got.Near != want.Near || !strings.HasPrefix(got.Key, want.Key) {
			t.Errorf("%q: %+v, want %+v", spec, got, want)
		}
	}
}

// TestKeysHaveOneCase: a key in another case is another key, and what it says must
// not count.
func TestKeysHaveOneCase(t *testing.T) {
	for text, near := range map[string]string{
		"[confidential]\nTechnology = \"sev-snp\"\n": "technology", "NAME = \"x\"\n": "name", "[[Disk]]\nimage = \"x\"\n": "disk", "[[disk]]\nImage = \"x\"\n": "image",
		"[confidential.SEV-SNP]\nuntil = \"nothing\"\n": "sev-snp",
	} {
		_, err := ParseSpec([]byte(text), "f", "/")
		var got *SpecError
		if !errors.As(err, &got) || got.Near != near || !strings.Contains(err.Error(), "unknown key") {
			t.Errorf("%q: %v, near %+v", text, err, got)
		}
	}
	if _, err := ParseSpec([]byte("[[device]]\ndriver = \"virtio-rng-pci\"\nMAC = \"x\"\n"), "f", "/"); err != nil {
		t.Errorf("properties are QEMU's: %v", err)
	}
}

func TestHostDecides(t *testing.T) {
	spec, err := ParseSpec([]byte(sevSpec), "vm.toml", "/specs")
	if err != nil {
		t.Fatal(err)
	}
	plain, err := ParseSpec([]byte(`accel = "kvm"`), "p.toml", "/specs")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		spec  *Spec
		facts Facts
		want  string
	}{
		"no SEV": {spec, machine(func(f *Facts) {
			f.Host.Technologies[0] = host.Technology{Name: "sev", Usable: host.No, Why: "no such feature"}
		}), "encrypt memory with sev: no such feature"},
		"no KVM":             {spec, machine(noKVM("gone")), "encrypt memory with sev: gone"},
		"plain asks for KVM": {plain, machine(noKVM("gone")), "use KVM: gone"},
	} {
		if _, err := NewPlan(c.spec, c.facts, testRoot); !errors.Is(err, ErrHost) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewPlan(plain, machine(func(f *Facts) { f.Emulator = []string{"swtee", "--"} }), testRoot); err == nil {
		t.Error("a plain VM is emulated")
	}
}

// TestTransitions checks that the table is closed, that every state can be
// reached, and that nothing leads from the latch to running but through Release.
func TestTransitions(t *testing.T) {
	reached := map[State]bool{Planned: true}
	for from, tos := range transitions {
		for _, to := range tos {
			if _, ok := transitions[to]; !ok {
				t.Errorf("%s leads to the unknown state %s", from, to)
			}
			reached[to] = true
		}
	}
	for s := range transitions {
		if !reached[s] {
			t.Errorf("%s cannot be reached", s)
		}
	}
	err := checkTransition(Running, Measured)
	var typed *StateError
	if !errors.As(err, &typed) || !strings.Contains(err.Error(), "running") || !strings.Contains(err.Error(), "measured") {
		t.Errorf("error %v does not name both states", err)
	}
}

// TestSNPRefusals: specs of SEV-SNP guests that cannot work or would not be secure.
func TestSNPRefusals(t *testing.T) {
	for change, want := range map[string]string{
		`until = "nothing"|until = "id-block"`:          "there is none",
		`until = "nothing"|until = "secret"`:            "no measurement while the guest is paused",
		`until = "nothing"|`:                            "no measurement while the guest is paused",
		`until = "nothing"|until = "later"`:             "must be",
		`"abi=1.55"|"debug"`:                            "the host could read",
		`"abi=1.55"|"no-debug"`:                         `unknown word "no-debug": must be smt`,
		`"abi=1.55"|"abi=1"`:                            "abi=MAJOR.MINOR",
		`"EPYC-Genoa"|"host"`:                           "are measured",
		`host-data = "01|host-data = "0`:                "32 bytes in hex",
		`kernel-hashes = true|session = "s"`:            "no sessions",
		`kernel-hashes = true|id-block = "s"`:           "go together",
		`technology = "sev-snp"|technology = "sev"`:     "policy",
		`name = "vm"|name = "vm"` + "\naccel = \"tcg\"": "tcg cannot encrypt",
	} {
		old, to, _ := strings.Cut(change, "|")
		_, err := ParseSpec([]byte(strings.Replace(snpSpec, old, to, 1)), "vm.toml", "/specs")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", change, err, want)
		}
	}
	spec, err := ParseSpec([]byte(snpSpec), "vm.toml", "/specs")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewPlan(spec, machine(func(f *Facts) { f.IGVMFile = true }), testRoot); err == nil || !errors.Is(err, ErrHost) {
		t.Errorf("an IGVM file for a QEMU that cannot load it: %v", err)
	}
	// QEMU would take policy and ID block from the file, and drop the owner's.
	bound := strings.NewReplacer("kernel-hashes = true", "id-block = \"b\"\nid-auth = \"a\"", `until = "nothing"`, `until = "id-block"`, "[kernel]", "", `image = "k"`, "").Replace(snpSpec)
	if spec, err = ParseSpec([]byte(bound), "vm.toml", "/specs"); err != nil {
		t.Fatal(err)
	}
	if _, err := NewPlan(spec, machine(func(f *Facts) { f.IGVMFile, f.Info = true, withIGVM() }), testRoot); err == nil || !strings.Contains(err.Error(), "ID block from the IGVM file") {
		t.Errorf("an ID block beside an IGVM file: %v", err)
	}
}

func TestAdvice(t *testing.T) {
	for text, want := range map[string]string{
		"sev_launch_start: LAUNCH_START ret=-5 fw_error=11 'Bad measurement'":                        "another platform, or for another policy",
		"sev_launch_start: LAUNCH_START ret=-5 fw_error=7 'Policy is not allowed'":                   "newer SEV firmware",
		"sev_launch_start: LAUNCH_START ret=-5 fw_error=6 'Certificate is invalid'":                  "malformed",
		"sev_launch_start: LAUNCH_START ret=-5 fw_error=23 'Required firmware resource depleted'":    "no free encryption slot",
		"SEV: guest firmware hashes table area is invalid (base=0x0 size=0x0)":                       "no area for kernel hashes",
		"sev_kvm_init: failed to get platform status ret=-1 fw_error='1: Platform state is invalid'": "not initialised",
		"sev_launch_start: LAUNCH_START ret=1 fw_error=16 'Guest handle is invalid'":                 "has lost this guest",
		"sev_common_kvm_init: failed to initialize ret=-16 fw_error=0 ''":                            "no free encryption slot",
		"sev_launch_update_data: LAUNCH_UPDATE ret=-5 fw_error=9 'Invalid address'":                  "refused a step",
		"sev_ram_block_added: failed to register region (0x7f+0x1) error 'Cannot allocate memory'":   "may not pin",
		"SNP_LAUNCH_START ret=-5 fw_error=7 'Policy is not allowed'":                                 "does not allow the policy",
		"foo: 'nope-pci' is not a valid device model name":                                           "no device, object or property",
		"Failed to get \"write\" lock":                                                               "another process uses",
		"unsupported machine type":                                                                   "does not know the machine type",
	} {
		a, ok := Advise(&StartError{Name: "x", Err: qmp.ErrClosed, Stderr: text})
		if !ok || !strings.Contains(a.Cause, want) || a.Fix == "" {
			t.Errorf("%s: %+v", text, a)
		}
	}
	if _, ok := Advise(&StartError{Name: "x", Err: errors.New("x"), Stderr: "something new"}); ok {
		t.Error("an unknown error is explained")
	}
	p := platformError("vm", "inject", errors.New("SEV: failed to inject secret ret=-5 fw_error=11 'Bad measurement'"))
	var typed *PlatformError
	if !errors.As(p, &typed) || typed.Status != sev.StatusBadMeasurement {
		t.Errorf("status %v", typed.Status)
	}
}

func TestEmulatedPlatform(t *testing.T) {
	if emulatedCBitPos != swtee.CBitPos {
		t.Errorf("the launcher expects the bit at %d, swtee has it at %d", emulatedCBitPos, swtee.CBitPos)
	}
	if emulatedMKTMEObject != tcg.MKTMEObject || emulatedMKTMEProperty != tcg.MKTMEProperty {
		t.Errorf("the launcher expects %s with %s, swtee has %s with %s", emulatedMKTMEObject, emulatedMKTMEProperty, tcg.MKTMEObject, tcg.MKTMEProperty)
	}
}

func TestReadExit(t *testing.T) {
	line := func(event, data string) string { return `{"event": "` + event + `", "data": ` + data + "}\r\n" }
	for log, want := range map[string]Exit{
		"": {Reason: "killed"},
		`{"QMP": {}}` + "\r\n" + line("RESUME", "{}"):                                           {Reason: "killed"},
		line("SHUTDOWN", `{"guest": true, "reason": "guest-shutdown"}`):                         {Reason: "guest-shutdown", Guest: true},
		line("GUEST_PANICKED", `{"action": "pause"}`) + line("SHUTDOWN", `{"reason": "x"}`):     {Reason: "guest-panic", Guest: true},
		"garbage\n" + line("SHUTDOWN", `{"guest": false, "reason": "host-signal"}`) + "{\"even": {Reason: "host-signal"},
	} {
		d := &rundir.Dir{Name: "vm", State: t.TempDir()}
		if err := os.WriteFile(d.LogPath(rundir.EventsLog), []byte(log), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadExit(d); err != nil || got != want {
			t.Errorf("%q: %+v, %v, want %+v", log, got, err, want)
		}
	}
}

func FuzzParseSpec(f *testing.F) {
	f.Add([]byte(sevSpec))
	f.Add([]byte("[[disk]]\nimage = 'x'"))
	facts := machine(nil)
	f.Fuzz(func(t *testing.T, b []byte) {
		spec, err := ParseSpec(b, "fuzz.toml", "/specs")
		if err != nil {
			return
		}
		plan, err := NewPlan(spec, facts, testRoot)
		if err != nil {
			return
		}
		for _, a := range plan.Argv {
			if strings.ContainsRune(a, 0) {
				t.Fatalf("NUL in %q", a)
			}
		}
	})
}
