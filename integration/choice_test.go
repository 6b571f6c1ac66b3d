package integration

import (
	"encoding/json"
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
		text = strings.NewReplacer(`technology = "sev-snp"`, "technology = "+technology, "policy = [\"smt\"]", "sev-snp = { policy = [\"smt\"] }").Replace(text)
		if technology == `"sev-es"` {
			text = strings.Replace(text, "sev-snp = { policy = [\"smt\"] }", "", 1)
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
	for _, c := range []struct{ version, technology, sidecar, want string }{
		{"11.1", `"any-confidential"`, "", "technology sev-snp the first of sev-snp, tdx, sev-es, sev that works here (spec)"},
		{"11.1", `["sev-es", "sev-snp"]`, "", "technology sev-es the first of sev-es, sev-snp"},
		{"7.2", `"any-confidential"`, "", "technology sev-es the first of sev-snp, tdx, sev-es, sev that works here (spec); not sev-snp: launch a guest of technology sev-snp: QEMU 7.2"},
		{"7.2", `["sev-snp", "tdx"]`, "", "none of the technologies works: sev-snp: launch a guest"},
		{"11.1", `"any-confidential"`, `technologies = ["sev-es", "sev"]`, "technology sev-es the first of sev-snp, tdx, sev-es, sev that works here (spec); not sev-snp: confidential.technology: sev-snp, but the image demands technologies = sev-es, sev ("},
		{"11.1", `"sev-snp"`, `technologies = ["tdx"]`, "vm.toml:11:1: confidential.technology: sev-snp, but the image demands technologies = tdx ("},
		{"11.1", `"sev-snp"`, `firmware = "bios"`, "vm.toml:6:2: firmware: uefi, but the image demands firmware = bios ("},
		{"11.1", `"sev-snp"`, "[policy]\nsev-snp = [\"smt\", \"abi=1.55\"]", "confidential.policy: 0x30000 (smt), but the image demands policy.sev-snp = 0x30137"},
		{"11.1", `"sev-snp"`, "[policy]\nsev-snp = [\"smt\"]", "technology sev-snp spec"},
		{"11.1", `"sev-es"`, "[policy]\nsev-es = [\"no-debug\", \"no-send\"]", "but the image demands policy.sev-es"},
		{"11.1", `"sev-snp"`, `technologes = ["tdx"]`, "disk.raw.vmlatch.toml:1:1: technologes: unknown key"},
		{"11.1", `"sev-snp"`, `technologies = ["sgx"]`, `technologies: "sgx": must be one of`},
		{"11.1", `[]`, "", "is an empty list"},
		{"11.1", `["sev", "sev"]`, "", "is listed twice"},
		{"11.1", `["sev-snp", "none"]`, "", "\"none\" stands alone"},
		{"11.1", `["any-confidential", "sev"]`, "", "stands alone"},
		{"11.1", `["sev", 1]`, "", "must be a name or a list of names"},
	} {
		if got := choose(c.version, c.technology, c.sidecar); !strings.Contains(got, c.want) {
			t.Errorf("QEMU %s, %s, %q:\n got %s\nwant %s", c.version, c.technology, c.sidecar, got, c.want)
		}
	}
	// Firmware that cannot do one technology may do the next.
	if _, err := os.Stat(tdxFirmware); err == nil {
		h.write("vm.toml", strings.NewReplacer(`technology = "sev-snp"`, `technology = ["sev-snp", "tdx"]`, `policy = ["smt"]`, "", "OVMF.amdsev.fd", tdxFirmware).Replace(technologySpec("sev-snp", qemus.Version(t, "11.1"))))
		out := strings.Join(strings.Fields(h.run("vmlatch", "plan", "--emulate", "--explain-choice", "vm.toml")), " ")
		if want := "technology tdx the first of sev-snp, tdx that works here (spec); not sev-snp: firmware.image: " + tdxFirmware + ": it has no area for kernel hashes"; !strings.Contains(out, want) {
			t.Errorf("plan: %s\nwant %s", out, want)
		}
	}
	// What one technology does not take leads to no other.
	text := strings.Replace(technologySpec("sev-snp", qemus.Newest(t)), `technology = "sev-snp"`, `technology = ["sev-snp", "sev-es"]`, 1)
	h.write("vm.toml", text)
	if out := h.fails("", "start", "--emulate", "vm.toml"); !strings.Contains(out, `for sev-es: policy: unknown word "smt": must be`) || !strings.Contains(out, "[confidential.sev-es]") {
		t.Errorf("a policy of another technology: %s", out)
	}
	_ = os.Remove(filepath.Join(h.work, "disk.raw.vmlatch.toml"))
	if err := os.Symlink("nowhere", filepath.Join(h.work, "disk.raw.vmlatch.toml")); err != nil {
		t.Fatal(err)
	}
	h.write("vm.toml", technologySpec("sev-snp", qemus.Newest(t)))
	if out := h.fails("", "plan", "--emulate", "vm.toml"); !strings.Contains(out, "demands of a disk image") {
		t.Errorf("a sidecar that links to nowhere: %s", out)
	}
	_ = os.Remove(filepath.Join(h.work, "disk.raw.vmlatch.toml"))
	// What the image demands where the spec asks for nothing.
	h.write("vm.toml", "qemu = \""+qemus.Newest(t)+"\"\n[firmware]\nimage = \"OVMF.amdsev.fd\"\n[latch]\nuntil = \"nothing\"\n[[disk]]\nimage = \"disk.raw\"\n")
	h.write("disk.raw.vmlatch.toml", `technologies = ["sev-snp"]`)
	if out := h.run("vmlatch", "plan", "--emulate", "vm.toml"); !strings.Contains(out, "technology sev-snp") {
		t.Errorf("plan: %s", out)
	}
	h.write("vm.toml", "qemu = \""+qemus.Newest(t)+"\"\n[firmware]\nimage = \"OVMF.amdsev.fd\"\n[confidential.sev-snp]\nuntil = \"nothing\"\n[[disk]]\nimage = \"disk.raw\"\n")
	if out := h.run("vmlatch", "plan", "--emulate", "--explain-choice", "vm.toml"); !strings.Contains(out, "demanded by ") || !strings.Contains(out, "sev-snp") {
		t.Errorf("plan: %s", out)
	}
}

// TestCheckCommand: what refuses a VM is said before anything is started.
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
	for name, want := range map[string]string{"milan-snp-on": "ciphertext-hiding warn failed", "milan-snp-off": "technology-usable refuse failed", "container": "technology-usable refuse failed"} {
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
		if refused := strings.Contains(want, "refuse"); !slices.Contains(found, want) || refused != (code == 3) || refused != r.Refused {
			t.Errorf("%s: code %d, %v", name, code, found)
		}
	}
	h.write("vm.toml", strings.Replace(text, "technology =", "kernel-hashes = false\ntechnology =", 1))
	r, code = check("--emulate", "nowhere.toml")
	if code != 2 || !r.Refused || len(r.Checks) != 1 || r.Checks[0].Fix == "" {
		t.Errorf("no such file: code %d, %+v", code, r)
	}
	h.write("lost.toml", strings.Replace(text, "technology =", "id-block = \"lost\"\nid-auth = \"lost\"\ntechnology =", 1))
	r, code = check("--emulate", "lost.toml")
	if code != 2 || !r.Refused || r.Checks[0].ID != "files-readable" || len(r.Checks) < 10 {
		t.Errorf("a missing ID block: code %d, %+v", code, r)
	}
	if out := h.fails("", "check", "--emulate"); !strings.Contains(out, "need a FILE") {
		t.Errorf("check --emulate: %s", out)
	}
	out := h.run("vmlatch", "check", "--emulate", "vm.toml")
	if !strings.Contains(out, "warning") || !strings.Contains(out, "kernel-measured") || !strings.Contains(out, "fix: ") {
		t.Errorf("text: %s", out)
	}
}
