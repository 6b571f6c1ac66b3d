package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
				for _, line := range []string{"migrate -d exec:cat", "savevm x", "dump_guest_memory /dev/null", "savevm/x", "dump-guest-memory\t/dev/null"} {
					if out := h.fails("", "qmp", "vm", "human-monitor-command", fmt.Sprintf(`{"command-line": %q}`, line)); !strings.Contains(out, "cannot leave this platform") {
						t.Errorf("%s: %s", line, out)
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
	within(t, "the VM does not end", func() bool { return !strings.Contains(h.run("vmlatch", "ps"), "a ") })
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
