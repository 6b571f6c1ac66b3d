package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/vmlatch/vmlatch/integration/qemus"
)

// tdxFirmware is Debian's OVMF, which has TDX metadata.
const tdxFirmware = "/usr/share/ovmf/OVMF.fd"

// technologySpec is a spec for each technology; disk and network show what QEMU
// makes of devices.
func technologySpec(tech, qemu string) string {
	firmware, more := "OVMF.amdsev.fd", ""
	switch tech {
	case "sev-es":
		more = "kernel-hashes = true\n"
	case "sev-snp":
		more = "policy = [\"smt\"]\n"
	case "tdx":
		firmware, more = tdxFirmware, "mrconfigid = \""+strings.Repeat("0b", 48)+"\"\n"
	}
	return fmt.Sprintf(`
name = "vm"
qemu = %q
memory = "128MiB"
cpus = 2
[firmware]
image = %q
[kernel]
image = "vmlinuz"
[confidential]
technology = %q
%s[latch]
until = "nothing"
[[disk]]
image = "disk.raw"
[[network]]
mode = "user"
[[device]]
driver = "virtio-rng-pci"
`, qemu, firmware, tech, more)
}

// TestTechnologiesPaused takes each technology to a paused VM on each QEMU that
// has it, and asks that QEMU about what it was told to do by itself.
func TestTechnologiesPaused(t *testing.T) {
	for tech, from := range map[string]string{"sev": "7.2", "sev-es": "7.2", "sev-snp": "10.0", "tdx": "11.1"} {
		t.Run(tech, func(t *testing.T) {
			qemus.Each(t, from, func(t *testing.T, qemu string) {
				h := under(t)
				if _, err := os.Stat(tdxFirmware); err != nil && tech == "tdx" {
					t.Skipf("%v: run make setup", err)
				}
				h.write("disk.raw", strings.Repeat("\x00", 4096))
				h.write("vm.toml", technologySpec(tech, qemu))
				h.run("vmlatch", "start", "vm.toml", "--emulate", "--hold")
				var status struct{ Status string }
				h.qmp("vm", "query-status", "", &status)
				if status.Status != "prelaunch" {
					t.Errorf("the VM is %s", status.Status)
				}
				for _, device := range []string{"dev-disk0", "dev-net0", "extra0"} {
					for property, want := range map[string]any{"iommu_platform": true, "disable-legacy": "on"} {
						var got any
						h.qmp("vm", "qom-get", fmt.Sprintf(`{"path": "/machine/peripheral/%s", "property": %q}`, device, property), &got)
						if got != want {
							t.Errorf("%s: %s is %v, want %v", device, property, got, want)
						}
					}
				}
				for property, want := range map[string]any{"mem-merge": false, "dump-guest-core": false} {
					var got any
					h.qmp("vm", "qom-get", fmt.Sprintf(`{"path": "/machine", "property": %q}`, property), &got)
					if got != want {
						t.Errorf("machine: %s is %v, want %v", property, got, want)
					}
				}
				if out := h.run("vmlatch", "inspect", "vm"); !strings.Contains(out, tech+" (emulated") || !strings.Contains(out, "memory") {
					t.Errorf("inspect: %s", out)
				}
				h.run("vmlatch", "release", "vm")
				for _, c := range []string{"migrate", "snapshot-save", "dump-guest-memory"} {
					if out := h.fails("", "qmp", "vm", c, `{"uri": "exec:cat", "protocol": "file:/dev/null", "paging": false}`); !strings.Contains(out, "cannot leave this platform") {
						t.Errorf("%s: %s", c, out)
					}
				}
				h.run("vmlatch", "stop", "vm", "--now")
				h.clearEnded()
				waitNothing(t, h.work)
			})
		})
	}
}

// qmp runs a command and reads its result.
func (h *host) qmp(name, command, args string, to any) {
	h.t.Helper()
	argv := []string{"qmp", name, command}
	if args != "" {
		argv = append(argv, args)
	}
	if err := json.Unmarshal([]byte(h.run("vmlatch", argv...)), to); err != nil {
		h.t.Fatal(err)
	}
}

// TestSEVESStory: registers are measured, so number and model of CPUs and the way
// in which KVM sets them up have to be what the owner named.
func TestSEVESStory(t *testing.T) {
	qemus.Each(t, "7.2", func(t *testing.T, qemu string) {
		h := under(t)
		h.session("no-debug", "no-key-sharing", "es")
		b, err := os.ReadFile(filepath.Join(top(), "examples/sev/guest.toml"))
		if err != nil {
			t.Fatal(err)
		}
		text := strings.NewReplacer(`technology    = "sev"`, `technology = "sev-es"`, "cpus   = 1", "cpus = 3").Replace(string(b))
		if !strings.Contains(text, "sev-es") || !strings.Contains(text, "cpus = 3") {
			t.Fatalf("the example's spec is another one:\n%s", text)
		}
		h.write("guest.toml", "cpu = \"EPYC-Milan-v1\"\nqemu = \""+qemu+"\"\n"+text)
		vmsa := "init2"
		if strings.Contains(qemu, "/7.2/") {
			vmsa = "legacy"
		}
		if out := h.run("vmlatch", "plan", "--emulate", "--explain-choice", "guest.toml"); !strings.Contains(out, vmsa) {
			t.Errorf("choices: %s", out)
		}
		h.run("vmlatch", "start", "guest.toml", "--emulate", "--hold")
		h.write("m.json", h.run("vmlatch", "measure", "guest"))
		verify := func(cpus, model, vmsa string) (string, error) {
			out, err := h.command("latchkey", "verify", "--owner", "guest.owner", "--measurement", "m.json", "--firmware", "OVMF.amdsev.fd", "--kernel", "vmlinuz",
				"--initrd", "initrd.img", "--cmdline", guestCmdline, "--vcpus", cpus, "--cpu", model, "--vmsa", vmsa).CombinedOutput()
			return string(out), err
		}
		for _, wrong := range [][3]string{{"2", "EPYC-Milan", vmsa}, {"3", "EPYC-Genoa", vmsa}, {"3", "EPYC-Milan", map[string]string{"init2": "legacy", "legacy": "init2"}[vmsa]}} {
			if out, err := verify(wrong[0], wrong[1], wrong[2]); err == nil {
				t.Errorf("%v is verified: %s", wrong, out)
			}
		}
		if out, err := verify("3", "EPYC-Milan", vmsa); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		h.write("passphrase", "correct horse battery\n")
		h.run("latchkey", "secret", "--owner", "guest.owner", "--measurement", "m.json", "--entry", "disk=passphrase", "--out", "p.json")
		h.run("vmlatch", "inject", "guest", "p.json")
		h.run("vmlatch", "release", "guest")
		if out := h.run("vmlatch", "ps"); !strings.Contains(out, "open: verified") {
			t.Errorf("ps: %s", out)
		}
		h.run("vmlatch", "stop", "guest", "--now")
	})
}

// TestLegacyVMSA: who asks for INIT2 of a QEMU that has none is refused, and a
// legacy launch on a newer one is what was asked for.
func TestLegacyVMSA(t *testing.T) {
	h := under(t)
	spec := func(version, vmsa string) {
		text := technologySpec("sev-es", qemus.Version(t, version))
		h.write("disk.raw", strings.Repeat("\x00", 4096))
		h.write("vm.toml", strings.Replace(text, "technology =", "vmsa = \""+vmsa+"\"\ntechnology =", 1))
	}
	spec("7.2", "init2")
	if out := h.fails("", "start", "vm.toml", "--emulate", "--hold"); !strings.Contains(out, "QEMU 9.1 or newer has it") {
		t.Errorf("INIT2 on 7.2: %s", out)
	}
	spec("10.0", "legacy")
	out := h.run("vmlatch", "plan", "--emulate", "--json", "vm.toml")
	if !strings.Contains(out, `\"legacy-vm-type\":\"on\"`) {
		t.Errorf("plan: %s", out)
	}
}

// TestSlotsOfAHost: an operator's limit holds over commands and kills.
func TestSlotsOfAHost(t *testing.T) {
	h := under(t)
	h.write("host.toml", "[slots]\nsev = 2\nsev-es = 1\n")
	h.env = append(h.env, "VMLATCH_CONFIG="+filepath.Join(h.work, "host.toml"))
	h.write("disk.raw", strings.Repeat("\x00", 4096))
	spec := func(tech string) {
		text := technologySpec(tech, qemus.Newest(t))
		i := strings.Index(text, "[[disk]]") // several VMs cannot share it
		h.write(tech+".toml", text[:i])
	}
	for _, tech := range []string{"sev", "sev-es", "sev-snp"} {
		spec(tech)
	}
	h.run("vmlatch", "start", "sev.toml", "--emulate", "--hold", "--name", "a")
	h.run("vmlatch", "start", "sev.toml", "--emulate", "--hold", "--name", "b")
	if out := h.fails("", "start", "sev.toml", "--emulate", "--hold", "--name", "c", "--slot-wait", "0s"); !strings.Contains(out, "all encryption slots are taken (2 of 2 in pool emulated-sev)") {
		t.Errorf("a third of two: %s", out)
	}
	h.run("vmlatch", "start", "sev-es.toml", "--emulate", "--hold", "--name", "es")
	if out := h.fails("", "start", "sev-snp.toml", "--emulate", "--hold", "--name", "snp", "--slot-wait", "0s"); !strings.Contains(out, "1 of 1 in pool emulated-sev-es") {
		t.Errorf("SEV-ES and SEV-SNP share their slots: %s", out)
	}
	if out := h.run("vmlatch", "host"); !strings.Contains(out, "slots emulated-sev     2 in use of 2, for sev ([slots] of host.toml)") {
		t.Errorf("host: %s", out)
	}
	for pid, line := range processes(h.work + "/") { // QEMU, however it dies
		if strings.Contains(line, "guest=a,") || strings.Contains(line, "guest=a ") {
			p, _ := os.FindProcess(pid)
			_ = p.Kill()
		}
	}
	deadline(t, func() bool { return !strings.Contains(h.run("vmlatch", "ps"), "a ") })
	h.run("vmlatch", "start", "sev.toml", "--emulate", "--hold", "--name", "c")
	waiting := h.command("vmlatch", "start", "sev.toml", "--emulate", "--hold", "--name", "a", "--slot-wait", "30s")
	var said bytes.Buffer
	waiting.Stderr = &said
	if err := waiting.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	h.run("vmlatch", "stop", "b", "--now")
	if err := waiting.Wait(); err != nil || !strings.Contains(said.String(), "no free encryption slot yet") {
		t.Errorf("a start that waits for a slot: %v: %s", err, &said)
	}
	h.run("vmlatch", "stop", "a", "--now")
	for _, name := range []string{"c", "es"} {
		h.run("vmlatch", "stop", name, "--now")
	}
	h.clearEnded()
	waitNothing(t, h.work)
}

// TestLateSlot: the platform gives slots back late; a start tries again, and says so.
func TestLateSlot(t *testing.T) {
	h := under(t)
	h.write("disk.raw", strings.Repeat("\x00", 4096))
	h.write("vm.toml", technologySpec("sev", qemus.Newest(t)))
	h.write("swtee", "#!/bin/sh\nif [ ! -e "+h.work+"/tried2 ]; then [ -e "+h.work+"/tried ] && touch "+h.work+"/tried2; touch "+h.work+"/tried; export SWTEE_FAULT=LAUNCH_START=RESOURCE_LIMIT; fi\nexec "+binaries+"/swtee \"$@\"\n")
	if err := os.Chmod(filepath.Join(h.work, "swtee"), 0o700); err != nil {
		t.Fatal(err)
	}
	h.write("host.toml", "[emulate]\nswtee = \""+filepath.Join(h.work, "swtee")+"\"\n")
	h.env = append(h.env, "VMLATCH_CONFIG="+filepath.Join(h.work, "host.toml"))
	out, err := h.command("vmlatch", "start", "vm.toml", "--emulate", "--hold").CombinedOutput()
	if err != nil || strings.Count(string(out), "trying again in") != 2 {
		t.Errorf("%v: %s", err, out)
	}
	h.run("vmlatch", "stop", "vm", "--now")
	if out := h.fails("LAUNCH_START=RESOURCE_LIMIT", "start", "vm.toml", "--emulate", "--hold", "--slot-wait", "250ms"); !strings.Contains(out, "(tried 2 times)") || !strings.Contains(out, "no free encryption slot") {
		t.Errorf("a platform that never has one: %s", out)
	}
	h.clearEnded()
	waitNothing(t, h.work)
}

// TestChoice: the first technology that spec, image, QEMU and host allow.
func TestChoice(t *testing.T) {
	h := under(t)
	h.write("disk.raw", strings.Repeat("\x00", 4096))
	choose := func(version, technology, sidecar string) string {
		h.t.Helper()
		text := technologySpec("sev-snp", qemus.Version(t, version))
		text = strings.NewReplacer(`technology = "sev-snp"`, "technology = "+technology, "policy = [\"smt\"]", "sev-snp = { policy = [\"smt\"] }").Replace(text)
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
		{"11.1", `"sev-snp"`, `technologies = ["tdx"]`, "vm.toml: confidential.technology: sev-snp, but the image demands technologies = tdx ("},
		{"11.1", `"sev-snp"`, `firmware = "bios"`, "vm.toml: firmware: uefi, but the image demands firmware = bios ("},
		{"11.1", `"sev-snp"`, "[policy]\nsev-snp = [\"smt\", \"abi=1.55\"]", "confidential.policy: 0x30000 (smt), but the image demands policy.sev-snp = 0x30137"},
		{"11.1", `"sev-snp"`, "[policy]\nsev-snp = [\"smt\"]", "technology sev-snp spec"},
		{"11.1", `"sev-es"`, "[policy]\nsev-es = [\"no-debug\", \"no-send\"]", "but the image demands policy.sev-es"},
		{"11.1", `"sev-snp"`, `technologes = ["tdx"]`, "disk.raw.vmlatch.toml:1:1: technologes: unknown key"},
		{"11.1", `"sev-snp"`, `technologies = ["sgx"]`, `technologies: "sgx": must be one of`},
		{"11.1", `[]`, "", "is an empty list"},
		{"11.1", `["sev", "sev"]`, "", "stands there twice"},
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
	if out := h.fails("", "start", "--emulate", "vm.toml"); !strings.Contains(out, `for sev-es: policy: "smt" is none of`) || !strings.Contains(out, "[confidential.sev-es]") {
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
	if out := h.fails("", "plan", "vm.toml"); !strings.Contains(out, "latch.until") { // a plain VM has no latch
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
	if out := h.fails("", "check", "--emulate"); !strings.Contains(out, "name its FILE") {
		t.Errorf("check --emulate: %s", out)
	}
	out := h.run("vmlatch", "check", "--emulate", "vm.toml")
	if !strings.Contains(out, "warning") || !strings.Contains(out, "kernel-measured") || !strings.Contains(out, "fix: ") {
		t.Errorf("text: %s", out)
	}
}

func deadline(t *testing.T, done func() bool) {
	t.Helper()
	for range 500 {
		if done() {
			return
		}
	}
	t.Fatal("it does not happen")
}
