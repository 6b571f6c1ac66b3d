package launcher

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/launcher/check"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// config is a host's configuration whose QEMU is the fake one.
func (h *machineTest) config(more string) Config {
	h.Helper()
	self, err := os.Executable()
	if err != nil {
		h.Fatal(err)
	}
	file := filepath.Join(h.dir, "host.toml")
	text := "run-dir = \"" + h.root.Run + "\"\nstate-dir = \"" + h.root.State + "\"\ncache-dir = \"" +
		filepath.Join(h.dir, "cache") + "\"\nqemu = \"" + self + "\"\n" + more
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		h.Fatal(err)
	}
	c, err := LoadHostConfig(file, true)
	if err != nil {
		h.Fatal(err)
	}
	return Config{Host: c}
}

// write writes a file next to the specs.
func (h *machineTest) write(name, text string) string {
	h.Helper()
	file := filepath.Join(h.dir, name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		h.Fatal(err)
	}
	return file
}

// TestLaunchFile goes the whole way: from a file to a running VM.
func TestLaunchFile(t *testing.T) {
	h := newMachineTest(t)
	file := h.write("vm.toml", "accel = \"tcg\"\n")
	m, err := Launch(t.Context(), file, h.config(""), StartOptions{})
	if err != nil {
		t.Fatal(err)
	}
	h.end(m)
	if m.State() != Running || m.Record().Origin.Spec != file || m.Record().Name != "vm" {
		t.Errorf("state %s, record %+v", m.State(), m.Record())
	}
	missing := filepath.Join(h.dir, "missing.toml")
	if _, err := Launch(t.Context(), missing, h.config(""), StartOptions{}); fault.As(err) == nil ||
		fault.As(err).File != missing {
		t.Errorf("a spec that does not exist: %v", err)
	}
	c := h.config("")
	c.Host.QEMU = "/nonexistent/qemu"
	if _, err := Launch(t.Context(), file, c, StartOptions{}); !errors.Is(err, fault.ErrHost) {
		t.Errorf("a QEMU that does not exist: %v", err)
	}
	wrong := h.write("wrong.toml", "technology = 1\n")
	if _, err := Launch(t.Context(), wrong, h.config(""), StartOptions{}); fault.As(err) == nil ||
		fault.As(err).Kind != fault.Spec {
		t.Errorf("a spec with an unknown key: %v", err)
	}
	impossible := h.write("impossible.toml",
		"accel = \"kvm\"\nmachine = \"q35\"\n[firmware]\nfeatures = [\"no-such-feature\"]\n")
	if _, err := Launch(t.Context(), impossible, h.config(""), StartOptions{}); !errors.Is(err, fault.ErrHost) {
		t.Errorf("a spec that this host cannot do: %v", err)
	}
}

// TestDefaultConfig: without settings those of the calling user count.
func TestDefaultConfig(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", dir)
	t.Setenv("XDG_RUNTIME_DIR", dir)
	t.Setenv("XDG_STATE_HOME", filepath.Join(dir, "state"))
	h, err := (&Config{}).host()
	if err != nil {
		t.Fatal(err)
	}
	if !filepath.IsAbs(h.RunDir) || !filepath.IsAbs(h.StateDir) || h.QEMU != "qemu-system-x86_64" {
		t.Errorf("settings %+v", h)
	}
}

func TestGatherFacts(t *testing.T) {
	h := newMachineTest(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := h.config("[emulate]\nswtee = \"" + self + "\"\nargs = [\"--fake-kvm\"]\n[slots]\nsev = 3\n")
	c.Emulate = true
	t.Setenv("SWTEE_PLATFORM", "platform")
	unowned := strings.NewReplacer("owner-cert = \"cert\"\n", "", "session = \"session\"\n", "")
	spec := unowned.Replace(sevGuest) + `
[latch]
until = "nothing"
[memory-backend]
hugepages = "2MiB"
type = "memfd"
[[disk]]
image = "d.raw"
`
	h.write("d.raw", "disk")
	h.write("d.raw.vmlatch.toml", "technologies = [\"sev\"]\nfirmware = \"uefi\"\n")
	s, err := LoadSpec(h.write("vm.toml", spec))
	if err != nil {
		t.Fatal(err)
	}
	f, err := GatherFacts(t.Context(), c, s)
	if err != nil {
		t.Fatal(err)
	}
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{self, "--platform", filepath.Join(wd, "platform"), "--fake-kvm", "--"}
	if !slices.Equal(f.Emulator, want) {
		t.Errorf("emulator %q, want %q", f.Emulator, want)
	}
	if f.QEMU != self || f.QEMUFrom != filepath.Join(h.dir, "host.toml") || f.Slots["sev"] != 3 || f.Host == nil {
		t.Errorf("facts %+v", f)
	}
	if f.Info == nil || !f.Info.HasObject("sev-guest", "policy") || f.HugePages == nil || len(f.Demands) != 1 ||
		f.IGVM {
		t.Errorf("facts about the spec: %+v, %+v", f, f.Info)
	}
	if p, err := NewPlan(s, f, h.root); err != nil || p.Technology != "sev" || p.Several() {
		t.Errorf("plan %+v, %v", p, err)
	}
	for name, c := range map[string]struct{ file, text, want string }{
		"demands":  {"d.raw.vmlatch.toml", "technologies = [\"sgx\"]\n", "must be one of"},
		"garbage":  {"d.raw.vmlatch.toml", "technologies = ", "d.raw.vmlatch.toml:1:"},
		"firmware": {"d.raw.vmlatch.toml", "firmware = \"coreboot\"\n", "must be bios or uefi"},
	} {
		h.write(c.file, c.text)
		if _, err := GatherFacts(t.Context(), h.config(""), s); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	_ = os.Remove(filepath.Join(h.dir, "d.raw.vmlatch.toml"))
	h.faults("query-qmp-schema", refuses+"no")
	c = h.config("cache-dir = \"\"\n"[:0])
	c.Host.CacheDir = ""
	if _, err := GatherFacts(t.Context(), c, s); !errors.Is(err, fault.ErrHost) ||
		!strings.Contains(err.Error(), "ask QEMU") {
		t.Errorf("a QEMU that does not answer: %v", err)
	}
	c.Record = host.Root(h.dir)
	if _, err := GatherFacts(t.Context(), c, s); fault.As(err) == nil ||
		!strings.Contains(err.Error(), "look at the host") {
		t.Errorf("a record that is none: %v", err)
	}
}

// TestEmulatorIsFound: in PATH, or next to the program.
func TestEmulatorIsFound(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	if _, err := findSwtee("swtee"); !errors.Is(err, fault.ErrHost) || fault.As(err).Fix == "" {
		t.Errorf("no emulator: %v, want an error about this host with a fix", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "swtee"), []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := findSwtee("swtee"); err != nil || got != filepath.Join(dir, "swtee") {
		t.Errorf("in PATH: %s, %v", got, err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := findSwtee(filepath.Base(self)); err != nil || got != self {
		t.Errorf("next to the program: %s, %v, want %s", got, err, self)
	}
}

// TestKernelLog: it is read only where a check, or a slot count, needs it.
func TestKernelLog(t *testing.T) {
	for name, want := range map[string]bool{
		"none": false, "sev": false, "sev-es": false, "sev-snp": true, "tdx": true, "mktme": true,
	} {
		traits, _ := tee.Traits(name)
		if got := needsKernelLog(traits); got != want {
			t.Errorf("%s: %t, want %t", name, got, want)
		}
	}
}

// TestSensible: what is wrong for one of several technologies is wrong.
func TestSensible(t *testing.T) {
	several := strings.Replace(snpGuest, `"sev-snp"`, `["sev-snp", "tdx"]`, 1)
	_, err := ParseSpec([]byte(several), "vm.toml", "/")
	e := fault.As(err)
	if e == nil || !strings.Contains(err.Error(), "for tdx: ") || e.Fix == "" {
		t.Errorf("a CPU model that TDX cannot have: %v", err)
	}
	bad := strings.Replace(several, "[latch]", "policy = [\"smt\"]\n[latch]", 1)
	_, err = ParseSpec([]byte(bad), "vm.toml", "/")
	if e := fault.As(err); e == nil || !strings.Contains(e.Fix, "goes into [confidential.tdx]") {
		t.Errorf("words of another policy: %v, fix %q", err, e.Fix)
	}
	open := "owner = 1\n"
	if _, err := ParseSpec([]byte(open), "vm.toml", "/"); err == nil {
		t.Error("an unknown key is accepted")
	}
	// A disk image may ask for the technology that a session is for.
	text := "[confidential]\nowner-cert = \"c\"\nsession = \"s\"\n[firmware]\nimage = \"f\"\n"
	if _, err := ParseSpec([]byte(text), "vm.toml", "/"); err == nil {
		t.Error("a session without a technology, and without a disk, is accepted")
	}
	if _, err := ParseSpec([]byte(text+"[[disk]]\nimage = \"d\"\n"), "vm.toml", "/"); err != nil {
		t.Errorf("with a disk: %v", err)
	}
}

func TestCheckFile(t *testing.T) {
	h := newMachineTest(t)
	file := h.write("vm.toml", "accel = \"tcg\"\n")
	results, p, err := CheckFile(t.Context(), file, "other", h.config(""))
	if err != nil || p == nil || p.Name != "other" || len(results) != len(check.Table()) {
		t.Errorf("%d results, plan %+v, %v, want all checks of a VM named other", len(results), p, err)
	}
	if _, _, err := CheckFile(t.Context(), file, "a/b", h.config("")); fault.As(err) == nil {
		t.Errorf("a bad name: %v", err)
	}
	missing := h.config("")
	missing.Record = host.Root(filepath.Join(h.dir, "missing"))
	_, _, err = CheckFile(t.Context(), file, "", missing)
	if e := fault.As(err); e == nil || e.Kind != fault.Usage || e.Fix != fault.FixRecord {
		t.Errorf("a record that is not there: %v", err)
	}
	for name, c := range map[string]struct {
		text, id    string
		least       int // results
		detail, fix string
		kind        func(c *Config)
	}{
		"unknown key": {"nme = 1\n", "spec", 1, "x.toml:1:1: nme: unknown key", `did you mean "name"?`, nil},
		"policy": {
			strings.Replace(snpGuest, "technology", "policy = [\"debug\", \"smt\"]\ntechnology", 1),
			"snp-policy-debug", 10, "confidential.policy: debug: the host could", `take "debug" out of policy`, nil,
		},
		"QEMU": {
			plainGuest, "qemu-object", 10, "/nonexistent", "install it (Debian: qemu-system-x86), or",
			func(c *Config) { c.Host.QEMU = "/nonexistent" },
		},
		"firmware": {
			"[firmware]\nfeatures = [\"none-has-it\"]\n", "host", 10, "no descriptor on this machine offers",
			"install a firmware that has it, or", nil,
		},
		"several": {
			strings.Replace(snpGuest, `"sev-snp"`, `["sev-snp", "sev-es"]`, 1), check.Technology, 1,
			"none of the technologies works:", "the reasons say what each lacks", nil,
		},
		"does not exist": {"", "spec", 1, "missing: no such file", `correct the spec: "vmlatch help spec"`, nil},
	} {
		config := h.config("")
		if c.kind != nil {
			c.kind(&config)
		}
		file := filepath.Join(h.dir, "missing")
		if c.text != "" {
			file = h.write("x.toml", c.text)
		}
		results, p, err := CheckFile(t.Context(), file, "", config)
		if err != nil || p != nil || len(results) < c.least || results[0].ID != c.id || !results[0].Refuses() {
			t.Errorf("%s: %d results, plan %t, %v, first %+v; want %s first", name, len(results), p != nil, err,
				results, c.id)
			continue
		}
		if r := results[0]; !strings.Contains(r.Detail, c.detail) || !strings.HasPrefix(r.Fix, c.fix) {
			t.Errorf("%s: detail %q, fix %q; want %q and %q", name, r.Detail, r.Fix, c.detail, c.fix)
		}
	}
}

func TestQueryPlatform(t *testing.T) {
	h := newMachineTest(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const caps = `{"pdh": "AQID", "cert-chain": "BAUG", "cpu0-id": "Bwg=", "cbitpos": 51, "reduced-phys-bits": 1}`
	h.faults("query-sev-capabilities", returns+caps)
	f := &plan.Facts{QEMU: self, Host: &host.Report{KVM: host.Technology{Usable: host.Yes}}}
	p, err := QueryPlatform(t.Context(), f)
	if err != nil || string(p.PDH) != "\x01\x02\x03" || p.CBitPos != 51 || p.Emulated {
		t.Errorf("platform %+v, %v", p, err)
	}
	h.faults("query-sev-capabilities", refuses+"SEV is not enabled")
	if _, err := QueryPlatform(t.Context(), f); !errors.Is(err, fault.ErrHost) ||
		!strings.Contains(err.Error(), "SEV is not enabled") {
		t.Errorf("without SEV: %v", err)
	}
	f.Host.KVM = host.Technology{Usable: host.No, Why: "gone", Fix: "load it"}
	if _, err := QueryPlatform(t.Context(), f); !errors.Is(err, fault.ErrHost) || !fault.As(err).Hardware {
		t.Errorf("without KVM: %v", err)
	}
}

// TestNameServersOfHosts: a guest that does not reach the host's loopback asks whom the host's own
// server asks.
func TestNameServersOfHosts(t *testing.T) {
	for name, c := range map[string]struct{ conf, behind, want, none string }{
		"a server": {"nameserver 192.0.2.1\n", "nameserver 192.0.2.9\n", "[]", ""},
		"the loopback": {
			"# stub\nnameserver 127.0.0.53\noptions edns0\n", "nameserver 192.0.2.9\nnameserver fe80::1%eth0\n",
			"[192.0.2.9]", "",
		},
		"one of each": {"nameserver 127.0.0.53\nnameserver 2001:db8::1\n", "", "[]", ""},
		"more than are asked": {
			"nameserver 127.0.0.53\n", strings.Repeat("nameserver 192.0.2.1\n", 2) + "nameserver 192.0.2.2\n" +
				"nameserver 192.0.2.3\nnameserver 192.0.2.4\nnameserver 2001:db8::1\n",
			"[192.0.2.1 192.0.2.2 192.0.2.3 2001:db8::1]", "",
		},
		"nothing behind it":        {"nameserver ::1\n", "", "[]", "loopback"},
		"nothing at all":           {"", "", "[]", "loopback"},
		"lines of other kinds":     {"nameserver\nnameserver x\nnameservers 192.0.2.1\n", "", "[]", "loopback"},
		"a loopback behind a stub": {"nameserver 127.0.0.53\n", "nameserver 127.0.0.1\n", "[]", "loopback"},
	} {
		root := t.TempDir()
		files := map[string]string{"etc/resolv.conf": c.conf, "run/systemd/resolve/resolv.conf": c.behind}
		for file, text := range files {
			if text == "" {
				continue
			}
			file = filepath.Join(root, file)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, none := nameServers(root)
		if fmt.Sprint(got) != c.want || (none == "") != (c.none == "") || !strings.Contains(none, c.none) {
			t.Errorf("%s: %v, %q; want %s, %q", name, got, none, c.want, c.none)
		}
	}
}
