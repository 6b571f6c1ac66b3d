package oracle

import (
	"bytes"
	"encoding/base64"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/newc"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
	"github.com/vmlatch/vmlatch/integration/qemus"
)

// needs returns files that "make qemu-matrix" prepares.
func needs(t *testing.T, names ...string) (paths []string) {
	t.Helper()
	for _, n := range names {
		file, err := filepath.Abs(filepath.Join("../../.cache/guest", n))
		if err == nil {
			_, err = os.Stat(file)
		}
		if err != nil {
			t.Skipf("%v: run make qemu-matrix", err)
		}
		paths = append(paths, file)
	}
	return paths
}

func build(t *testing.T, dir, out, pkg string) string {
	t.Helper()
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return out
}

var clientLine = regexp.MustCompile(`client: (\S+) (\S+)`)

// TestPublicClients: programs that use Google's libraries, as they are, get evidence in a guest, by
// the ioctl of /dev/sev-guest and by configfs-tsm, and Google's verifiers accept it.
func TestPublicClients(t *testing.T) {
	qemu := qemus.Version(t, "11.1")
	work := t.TempDir()
	program, err := os.ReadFile(build(t, ".", filepath.Join(work, "client"), "./client"))
	if err != nil {
		t.Fatal(err)
	}
	swtee := build(t, "../..", filepath.Join(work, "swtee"), "./cmd/swtee")
	p := newPlatform(t, filepath.Join(work, "platform"))
	files := needs(t, "coco/initrd.img", "coco/vmlinuz", "OVMF.amdsev.fd")

	// The kernel unpacks archives that stand one behind the other.
	first, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	var second bytes.Buffer
	err = newc.Write(&second, []newc.File{{Name: "client", Mode: newc.ModeExec, Data: program}})
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(work, "initrd")
	if err := os.WriteFile(image, append(first, second.Bytes()...), 0o600); err != nil {
		t.Fatal(err)
	}
	boot := func(t *testing.T, object, machine, cpu, firmware, words string) (name string, evidence []byte) {
		out, err := exec.Command(
			swtee, "--quiet", "--accel", "twin", "--platform", filepath.Join(work, "platform"), "--", qemu,
			"-machine", "q35,vmport=off,confidential-guest-support=c"+machine, "-accel", "kvm", "-cpu", cpu,
			"-object", object, "-smp", "1", "-m", "512", "-bios", firmware, "-nodefaults", "-display", "none",
			"-serial", "stdio", "-no-reboot", "-kernel", files[1], "-initrd", image,
			"-append", "console=ttyS0 quiet vmlatch.run=/client "+words).
			CombinedOutput()
		m := clientLine.FindSubmatch(out)
		if err != nil || m == nil {
			t.Fatalf("%v: %s", err, out)
		}
		b, err := base64.StdEncoding.DecodeString(string(m[2]))
		if err != nil {
			t.Fatal(err)
		}
		return string(m[1]), b
	}
	const snp = "sev-snp-guest,id=c,cbitpos=51,reduced-phys-bits=1,kernel-hashes=on"
	for way, want := range map[string]string{
		"sev-guest": "*client.LinuxIoctlQuoteProvider", "configfs-tsm": "*client.LinuxConfigFsQuoteProvider",
	} {
		t.Run(way, func(t *testing.T) {
			name, b := boot(t, snp, "", "EPYC-Milan", files[2], "vmlatch.interface="+way)
			if name != want || len(b) < report.Size {
				t.Fatalf("the client used %s, and got %d bytes", name, len(b))
			}
			if err := theirs(b[:report.Size], p.endorsed["vcek.der"], p.amdPEM, "Genoa", p.at); err != nil {
				t.Errorf("go-sev-guest: %v", err)
			}
		})
	}
	t.Run("TDX", func(t *testing.T) {
		firmware := needs(t, "coco/OVMF.fd")[0]
		name, b := boot(t, "tdx-guest,id=c", ",kernel_irqchip=split", "host", firmware, "client=tdx")
		if name != "*client.LinuxConfigFsQuoteProvider" {
			t.Errorf("the client used %s", name)
		}
		if err := theirQuote(b, p.coll, p.intelX, p.at); err != nil {
			t.Errorf("go-tdx-guest: %v", err)
		}
	})
}
