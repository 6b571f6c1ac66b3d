package integration

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	facts "github.com/vmlatch/vmlatch/launcher/host"
)

// TestTrustBoundary: the host's program must not even contain the code that handles an
// owner's keys, the emulator or an attestation verifier; the owner's program must not
// contain code that starts VMs.
func TestTrustBoundary(t *testing.T) {
	for program, forbidden := range map[string][]string{
		"vmlatch": {
			"/firmware/sev/session", "/firmware/swtee", "/firmware/tpm/seal", "/firmware/tpm/verify",
			"go-sev-guest", "go-tdx-guest",
		},
		"latchkey":       {"vmlatch/launcher", "vmlatch/qmp", "/firmware/swtee"},
		"latchguest":     {"/firmware/evidence/policy", "/firmware/tpm", "crypto/tls", "crypto/x509", "encoding/json"},
		"latchguest-tpm": {"/firmware/evidence", "/firmware/tpm/verify", "crypto/tls", "crypto/x509"},
	} {
		out, err := exec.Command("go", "list", "-deps", "../cmd/"+program).Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range forbidden {
			if bytes.Contains(out, []byte(f)) {
				t.Errorf("%s links %s", program, f)
			}
		}
	}
}

// TestSize builds programs like a release.
func TestSize(t *testing.T) {
	limits := map[string]int64{"vmlatch": 10_000_000, "latchkey": 12_000_000, "latchguest": 2_500_000}
	dir := t.TempDir()
	build := exec.Command("scripts/program", dir, "vmlatch", "latchkey", "latchguest")
	build.Dir = top()
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for program, limit := range limits {
		info, err := os.Stat(filepath.Join(dir, program))
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() >= limit {
			t.Errorf("%s has %d bytes, must stay under %d", program, info.Size(), limit)
		}
	}
}

// TestQMPCommandsOfAStart counts the replies that QEMU logs: a start, released,
// sends at most five commands, one of them on the events monitor.
func TestQMPCommandsOfAStart(t *testing.T) {
	h := newHost(t)
	log := filepath.Join(h.work, "qmp.log")
	h.write("qemu", `#!/bin/sh
for a; do
	shift
	case $a in socket,id=qmp,*) a=$a,logfile=`+log+`;; esac
	set -- "$@" "$a"
done
exec qemu-system-x86_64 "$@"
`)
	if err := os.Chmod(filepath.Join(h.work, "qemu"), 0o700); err != nil {
		t.Fatal(err)
	}
	h.write("vm.toml", "memory = \"32MiB\"\naccel = \"tcg\"\nqemu = \""+filepath.Join(h.work, "qemu")+"\"\n")
	h.run("vmlatch", "start", "vm.toml")
	h.run("vmlatch", "stop", "vm", "--now")
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), `"id":`) + 1; n < 3 || n > 5 {
		t.Errorf("%d commands, want 3 to 5:\n%s", n, text)
	}
}

// TestPlainUnderKVM boots the plain guest with hardware virtualisation.
func TestPlainUnderKVM(t *testing.T) {
	if ok, why := facts.KVM(); !ok {
		t.Skip("needs KVM that can run firmware: ", why)
	}
	h := newHost(t)
	h.write("vm.toml", `
memory = "256MiB"
accel = "kvm"
[kernel]
image = "vmlinuz"
initrd = "initrd.img"
cmdline = "console=ttyS0 quiet"
`)
	h.shows("console", h.run("vmlatch", "run", "vm.toml"), "powering off")
}
