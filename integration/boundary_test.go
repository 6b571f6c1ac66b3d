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
		"vmlatch":  {"/firmware/sev/session", "/firmware/swtee", "go-sev-guest", "go-tdx-guest"},
		"latchkey": {"vmlatch/launcher", "vmlatch/qmp", "/firmware/swtee"},
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

// TestSize builds vmlatch like a release.
func TestSize(t *testing.T) {
	file := filepath.Join(t.TempDir(), "vmlatch")
	build := exec.Command("go", "build", "-trimpath", "-tags", "urfave_cli_no_docs", "-ldflags", "-s -w",
		"-o", file, "../cmd/vmlatch")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() >= 10_000_000 {
		t.Errorf("vmlatch has %d bytes, must stay under 10 MB", info.Size())
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
