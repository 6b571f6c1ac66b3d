package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/vmlatch/vmlatch/integration/qemus"
)

// TestChoice: the first technology that spec, image, QEMU and host allow.
func TestChoice(t *testing.T) {
	h := under(t)
	h.write("disk.raw", strings.Repeat("\x00", 4096))
	choose := func(version, technology, sidecar string) string {
		h.t.Helper()
		text := technologySpec("sev-snp", qemus.Version(t, version))
		const policy, own = `policy = ["smt"]`, `sev-snp = { policy = ["smt"] }`
		text = strings.NewReplacer(`technology = "sev-snp"`, "technology = "+technology, policy, own).Replace(text)
		if technology == `"sev-es"` {
			text = strings.Replace(text, own, "", 1)
		}
		h.write("vm.toml", text)
		if sidecar == "" {
			_ = os.Remove(filepath.Join(h.work, "disk.raw.vmlatch.toml"))
		} else {
			h.write("disk.raw.vmlatch.toml", sidecar)
		}
		out, _ := h.command("vmlatch", "plan", "--emulate", "--explain-choice", "vm.toml").CombinedOutput()
		return strings.Join(strings.Fields(string(out)), " ")
	}
	const (
		anyTechnology = `"any-confidential"`
		firstOf       = " the first of sev-snp, tdx, sev-es, sev that works here (spec)"
	)
	for _, c := range []struct{ version, technology, sidecar, want string }{
		{version: "11.1", technology: anyTechnology, want: "technology sev-snp" + firstOf},
		{version: "11.1", technology: `["sev-es", "sev-snp"]`, want: "technology sev-es the first of sev-es, sev-snp"},
		{
			version:    "7.2",
			technology: anyTechnology,
			want:       "technology sev-es" + firstOf + "; not sev-snp: launch a guest of technology sev-snp: QEMU 7.2",
		},
		{
			version:    "7.2",
			technology: `["sev-snp", "tdx"]`,
			want:       "none of the technologies works: sev-snp: launch a guest",
		},
		{
			version:    "11.1",
			technology: anyTechnology,
			sidecar:    `technologies = ["sev-es", "sev"]`,
			want: "technology sev-es" + firstOf + "; not sev-snp: " +
				"confidential.technology: sev-snp, but the image demands technologies = sev-es, sev (",
		},
		{
			version:    "11.1",
			technology: `"sev-snp"`,
			sidecar:    `technologies = ["tdx"]`,
			want:       "vm.toml:11:1: confidential.technology: sev-snp, but the image demands technologies = tdx (",
		},
		{
			version:    "11.1",
			technology: `"sev-snp"`,
			sidecar:    `firmware = "bios"`,
			want:       "vm.toml:6:2: firmware: uefi, but the image demands firmware = bios (",
		},
		{
			version:    "11.1",
			technology: `"sev-snp"`,
			sidecar:    "[policy]\nsev-snp = [\"smt\", \"abi=1.55\"]",
			want:       "confidential.policy: 0x30000 (smt), but the image demands policy.sev-snp = 0x30137",
		},
		{
			version:    "11.1",
			technology: `"sev-snp"`,
			sidecar:    "[policy]\nsev-snp = [\"smt\"]",
			want:       "technology sev-snp spec",
		},
		{
			version:    "11.1",
			technology: `"sev-es"`,
			sidecar:    "[policy]\nsev-es = [\"no-debug\", \"domain\"]",
			want:       "but the image demands policy.sev-es",
		},
		{
			version:    "11.1",
			technology: `"sev-snp"`,
			sidecar:    `technologes = ["tdx"]`,
			want:       "disk.raw.vmlatch.toml:1:1: technologes: unknown key",
		},
		{
			version:    "11.1",
			technology: `"sev-snp"`,
			sidecar:    `technologies = ["sgx"]`,
			want:       `technologies: "sgx": must be one of`,
		},
		{version: "11.1", technology: `[]`, want: "is an empty list"},
		{version: "11.1", technology: `["sev", "sev"]`, want: "is listed twice"},
		{version: "11.1", technology: `["sev-snp", "none"]`, want: `"none" stands alone`},
		{version: "11.1", technology: `["any-confidential", "sev"]`, want: "stands alone"},
		{version: "11.1", technology: `["sev", 1]`, want: "must be a name or a list of names"},
	} {
		if got := choose(c.version, c.technology, c.sidecar); !strings.Contains(got, c.want) {
			t.Errorf("QEMU %s, %s, %q:\n got %s\nwant %s", c.version, c.technology, c.sidecar, got, c.want)
		}
	}
	// Firmware that does not support one technology may support the next.
	if _, err := os.Stat(tdxFirmware); err == nil {
		h.write("vm.toml", strings.NewReplacer(
			`technology = "sev-snp"`, `technology = ["sev-snp", "tdx"]`,
			`policy = ["smt"]`, "",
			"OVMF.amdsev.fd", tdxFirmware,
		).Replace(technologySpec("sev-snp", qemus.Version(t, "11.1"))))
		out := strings.Join(strings.Fields(h.run("vmlatch", "plan", "--emulate", "--explain-choice", "vm.toml")), " ")
		h.shows("plan", out, "technology tdx the first of sev-snp, tdx that works here (spec); not sev-snp: "+
			"firmware.image: "+tdxFirmware+": it has no area for kernel hashes")
	}
	// A key that one technology does not accept is an error, not a reason to try the next.
	text := strings.Replace(technologySpec("sev-snp", qemus.Newest(t)),
		`technology = "sev-snp"`, `technology = ["sev-snp", "sev-es"]`, 1)
	h.write("vm.toml", text)
	h.shows("a policy of another technology", h.fails("", "start", "--emulate", "vm.toml"),
		`for sev-es: policy: unknown word "smt": must be`, "[confidential.sev-es]")
	_ = os.Remove(filepath.Join(h.work, "disk.raw.vmlatch.toml"))
	if err := os.Symlink("nowhere", filepath.Join(h.work, "disk.raw.vmlatch.toml")); err != nil {
		t.Fatal(err)
	}
	h.write("vm.toml", technologySpec("sev-snp", qemus.Newest(t)))
	h.shows("a sidecar that links to nowhere", h.fails("", "plan", "--emulate", "vm.toml"), "demands of a disk image")
	_ = os.Remove(filepath.Join(h.work, "disk.raw.vmlatch.toml"))
	// What the image demands where the spec asks for nothing.
	const undecided = `
qemu = %q
[firmware]
image = "OVMF.amdsev.fd"
[%s]
until = "nothing"
[[disk]]
image = "disk.raw"
`
	h.write("vm.toml", fmt.Sprintf(undecided, qemus.Newest(t), "latch"))
	h.write("disk.raw.vmlatch.toml", `technologies = ["sev-snp"]`)
	h.shows("plan", h.run("vmlatch", "plan", "--emulate", "vm.toml"), "technology sev-snp")
	h.write("vm.toml", fmt.Sprintf(undecided, qemus.Newest(t), "confidential.sev-snp"))
	h.shows("choice", h.run("vmlatch", "plan", "--emulate", "--explain-choice", "vm.toml"), "demanded by ", "sev-snp")
}

// TestCheckCommand: why a VM is refused is reported before anything is started.
func TestCheckCommand(t *testing.T) {
	h := under(t)
	h.write("disk.raw", strings.Repeat("\x00", 4096))
	text := technologySpec("sev-snp", qemus.Newest(t))
	h.write("vm.toml", text)
	type report struct {
		Schema  string
		Refused bool
		Checks  []struct{ ID, Severity, Verdict, Cause, Fix, Source string }
	}
	check := func(args ...string) (r report, code int) {
		h.t.Helper()
		cmd := h.command("vmlatch", append([]string{"check", "--json"}, args...)...)
		out, _ := cmd.Output()
		if err := json.Unmarshal(out, &r); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return r, cmd.ProcessState.ExitCode()
	}
	r, code := check("--emulate", "vm.toml")
	if r.Schema != "vmlatch.check/1" || r.Refused || code != 0 || len(r.Checks) < 20 {
		t.Errorf("code %d, %+v", code, r)
	}
	all, _ := check("--emulate", "--all", "vm.toml")
	if len(all.Checks) <= len(r.Checks) {
		t.Errorf("%d checks in all, %d apply", len(all.Checks), len(r.Checks))
	}
	h.write("bad.toml", strings.Replace(text, `policy = ["smt"]`, `policy = ["smt", "debug"]`, 1))
	r, code = check("--emulate", "bad.toml")
	if !r.Refused || code != 2 || r.Checks[0].ID != "snp-policy-debug" || r.Checks[0].Fix == "" {
		t.Errorf("code %d, %+v", code, r)
	}
	const record = "../launcher/host/testdata/hosts/"
	for name, want := range map[string]string{
		"milan-snp-on":  "ciphertext-hiding warn failed",
		"milan-snp-off": "technology-usable refuse failed",
		"container":     "technology-usable refuse failed",
	} {
		a, err := txtar.ParseFile(record + name + ".txtar")
		if err != nil {
			t.Fatal(err)
		}
		root := filepath.Join(h.work, name)
		if err := txtar.Write(a, root); err != nil {
			t.Fatal(err)
		}
		r, code = check("--root", root, "vm.toml")
		var found []string
		for _, c := range r.Checks {
			found = append(found, c.ID+" "+c.Severity+" "+c.Verdict)
		}
		if !slices.Contains(found, want) {
			t.Errorf("%s: %v, want %q among them", name, found, want)
		}
		if refused := strings.Contains(want, "refuse"); refused != (code == 3) || refused != r.Refused {
			t.Errorf("%s: code %d, refused %v, want refused %v", name, code, r.Refused, refused)
		}
	}
	h.write("vm.toml", strings.Replace(text, "technology =", "kernel-hashes = false\ntechnology =", 1))
	r, code = check("--emulate", "nowhere.toml")
	if code != 2 || !r.Refused || len(r.Checks) != 1 || r.Checks[0].Fix == "" {
		t.Errorf("no such file: code %d, %+v", code, r)
	}
	const lost = "id-block = \"lost\"\nid-auth = \"lost\"\n"
	h.write("lost.toml", strings.Replace(text, "technology =", lost+"technology =", 1))
	r, code = check("--emulate", "lost.toml")
	if code != 2 || !r.Refused || r.Checks[0].ID != "files-readable" || len(r.Checks) < 10 {
		t.Errorf("a missing ID block: code %d, %+v", code, r)
	}
	h.shows("check --emulate", h.fails("", "check", "--emulate"), "need a FILE")
	h.shows("check", h.run("vmlatch", "check", "--emulate", "vm.toml"), "warning", "kernel-measured", "fix: ")
}
