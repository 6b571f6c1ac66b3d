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

// technologySpec is a spec for a technology. It has a disk and a network to show how
// QEMU sets up devices.
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

// TestTechnologiesPaused starts a paused VM with each technology on each QEMU that has
// it, and asks QEMU about the properties that vmlatch sets without being told.
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
					t.Errorf("the VM is %s, want prelaunch", status.Status)
				}
				for _, device := range []string{"dev-disk0", "dev-net0", "extra0"} {
					for property, want := range map[string]any{"iommu_platform": true, "disable-legacy": "on"} {
						var got any
						path := fmt.Sprintf(`{"path": "/machine/peripheral/%s", "property": %q}`, device, property)
						h.qmp("vm", "qom-get", path, &got)
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
				h.shows("inspect", h.run("vmlatch", "inspect", "vm"), tech+" (emulated", "memory")
				h.run("vmlatch", "release", "vm")
				const args = `{"uri": "exec:cat", "protocol": "file:/dev/null", "paging": false}`
				for _, c := range []string{"migrate", "snapshot-save", "dump-guest-memory"} {
					h.shows(c, h.fails("", "qmp", "vm", c, args), "cannot leave this platform")
				}
				for _, line := range []string{
					"migrate -d exec:cat",
					"savevm x",
					"dump_guest_memory /dev/null",
					"savevm/x",
					"dump-guest-memory\t/dev/null",
				} {
					arg := fmt.Sprintf(`{"command-line": %q}`, line)
					h.shows(
						line,
						h.fails("", "qmp", "vm", "human-monitor-command", arg),
						"cannot leave this platform",
					)
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

// TestSEVESStory: registers are measured, so the number and model of the CPUs, and the
// way in which KVM sets them up, have to be what the owner named.
func TestSEVESStory(t *testing.T) {
	qemus.Each(t, "7.2", func(t *testing.T, qemu string) {
		h := under(t)
		h.session("no-debug", "no-key-sharing", "es")
		b, err := os.ReadFile(filepath.Join(top(), "examples/sev/guest.toml"))
		if err != nil {
			t.Fatal(err)
		}
		text := strings.NewReplacer(
			`technology    = "sev"`, `technology = "sev-es"`,
			"cpus   = 1", "cpus = 3",
		).Replace(string(b))
		if !strings.Contains(text, "sev-es") || !strings.Contains(text, "cpus = 3") {
			t.Fatalf("the example's spec has changed:\n%s", text)
		}
		h.write("guest.toml", "cpu = \"EPYC-Milan-v1\"\nqemu = \""+qemu+"\"\n"+text)
		vmsa, otherVMSA := "init2", "legacy"
		if strings.Contains(qemu, "/7.2/") {
			vmsa, otherVMSA = otherVMSA, vmsa
		}
		h.shows("choices", h.run("vmlatch", "plan", "--emulate", "--explain-choice", "guest.toml"), vmsa)
		h.run("vmlatch", "start", "guest.toml", "--emulate", "--hold")
		h.measured()
		verify := func(cpus, model, vmsa string) (string, error) {
			args := ownerArgs("verify", "--vcpus", cpus, "--cpu", model, "--vmsa", vmsa)
			out, err := h.command("latchkey", args...).CombinedOutput()
			return string(out), err
		}
		for _, wrong := range [][3]string{
			{"2", "EPYC-Milan", vmsa},
			{"3", "EPYC-Genoa", vmsa},
			{"3", "EPYC-Milan", otherVMSA},
		} {
			if out, err := verify(wrong[0], wrong[1], wrong[2]); err == nil {
				t.Errorf("%v is verified: %s", wrong, out)
			}
		}
		if out, err := verify("3", "EPYC-Milan", vmsa); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		h.packet()
		h.run("vmlatch", "inject", "guest", "p.json")
		h.run("vmlatch", "release", "guest")
		h.shows("ps", h.run("vmlatch", "ps"), "open: verified")
		h.run("vmlatch", "stop", "guest", "--now")
	})
}

// TestLegacyVMSA: a spec that asks for INIT2 is refused if QEMU does not have it, and a
// newer QEMU makes a legacy launch if the spec asks for one.
func TestLegacyVMSA(t *testing.T) {
	h := under(t)
	spec := func(version, vmsa string) {
		text := technologySpec("sev-es", qemus.Version(t, version))
		h.write("disk.raw", strings.Repeat("\x00", 4096))
		h.write("vm.toml", strings.Replace(text, "technology =", "vmsa = \""+vmsa+"\"\ntechnology =", 1))
	}
	spec("7.2", "init2")
	h.shows("INIT2 on 7.2", h.fails("", "start", "vm.toml", "--emulate", "--hold"), "QEMU 9.1 or newer has it")
	spec("10.0", "legacy")
	h.shows("plan", h.run("vmlatch", "plan", "--emulate", "--json", "vm.toml"), `\"legacy-vm-type\":\"on\"`)
}

// TestSlotsOfAHost: an operator's limit applies across commands, and after kills.
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
	start := func(tech, name string, more ...string) []string {
		return append([]string{"start", tech + ".toml", "--emulate", "--hold", "--name", name}, more...)
	}
	h.run("vmlatch", start("sev", "a")...)
	h.run("vmlatch", start("sev", "b")...)
	h.shows("a third VM for two slots", h.fails("", start("sev", "c", "--slot-wait", "0s")...),
		"all encryption slots are taken (2 of 2 in pool emulated-sev)")
	h.run("vmlatch", start("sev-es", "es")...)
	h.shows("SEV-SNP, which shares SEV-ES's slots", h.fails("", start("sev-snp", "snp", "--slot-wait", "0s")...),
		"1 of 1 in pool emulated-sev-es")
	h.shows("host", h.run("vmlatch", "host"),
		"slots emulated-sev     2 in use of 2, for sev ([slots] of host.toml)")
	for pid, line := range processes(h.work + "/") { // QEMU dies
		if strings.Contains(line, "guest=a,") || strings.Contains(line, "guest=a ") {
			p, _ := os.FindProcess(pid)
			_ = p.Kill()
		}
	}
	within(t, "the VM does not end", func() bool { return !strings.Contains(h.run("vmlatch", "ps"), "a ") })
	h.run("vmlatch", start("sev", "c")...)
	waiting := h.command("vmlatch", start("sev", "a", "--slot-wait", "30s")...)
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

// TestLateSlot: the platform frees slots late, so a start tries again, and says so.
func TestLateSlot(t *testing.T) {
	h := under(t)
	h.write("disk.raw", strings.Repeat("\x00", 4096))
	h.write("vm.toml", technologySpec("sev", qemus.Newest(t)))
	// The first two launches find no slot.
	h.write("swtee", fmt.Sprintf(`#!/bin/sh
if [ ! -e %[1]s/tried2 ]; then
	[ -e %[1]s/tried ] && touch %[1]s/tried2
	touch %[1]s/tried
	export SWTEE_FAULT=LAUNCH_START=RESOURCE_LIMIT
fi
exec %[2]s/swtee "$@"
`, h.work, binaries))
	if err := os.Chmod(filepath.Join(h.work, "swtee"), 0o700); err != nil {
		t.Fatal(err)
	}
	h.write("host.toml", "[emulate]\nswtee = \""+filepath.Join(h.work, "swtee")+"\"\n")
	h.env = append(h.env, "VMLATCH_CONFIG="+filepath.Join(h.work, "host.toml"))
	out, err := h.command("vmlatch", "start", "vm.toml", "--emulate", "--hold").CombinedOutput()
	if err != nil || strings.Count(string(out), "trying again in") != 2 {
		t.Errorf("%v, want two retries: %s", err, out)
	}
	h.run("vmlatch", "stop", "vm", "--now")
	const always = "LAUNCH_START=RESOURCE_LIMIT"
	h.shows("a platform that never has a slot",
		h.fails(always, "start", "vm.toml", "--emulate", "--hold", "--slot-wait", "250ms"),
		"(tried 2 times)", "no free encryption slot")
	h.clearEnded()
	waitNothing(t, h.work)
}
