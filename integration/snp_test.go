package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/integration/qemus"
)

const snpSpec = `
name   = "snp"
memory = "256MiB"
cpus   = 2
cpu    = "EPYC-Milan-v1"

[firmware]
image = "OVMF.amdsev.fd"

[kernel]
image   = "vmlinuz"
initrd  = "initrd.img"
cmdline = "quiet"

[confidential]
technology    = "sev-snp"
kernel-hashes = true
id-block      = "guest.id-block"
id-auth       = "guest.id-auth"
host-data     = "0909090909090909090909090909090909090909090909090909090909090909"
`

// TestIDBlockBindsALaunch: the platform runs the guest whose digest the owner
// signed, and no other.
func TestIDBlockBindsALaunch(t *testing.T) {
	qemus.Each(t, "10.0", func(t *testing.T, qemu string) {
		h := newHost(t)
		report := filepath.Join(h.work, "report.json")
		h.env = append(h.env, "SWTEE_FAKE_KVM=1", "SWTEE_REPORT="+report)
		spec := "qemu = \"" + qemu + "\"\n" + snpSpec
		h.write("snp.toml", spec)
		h.write("id.pem", newIDKey(t))
		digest := strings.TrimSpace(h.run("latchkey", "measure", "--technology", "sev-snp", "--firmware", "OVMF.amdsev.fd", "--cpu", "EPYC-Milan", "--vcpus", "2",
			"--kernel", "vmlinuz", "--initrd", "initrd.img", "--cmdline", "quiet"))
		h.run("latchkey", "idblock", "make", "guest", "--id-key", "id.pem", "--digest", digest)

		h.run("vmlatch", "start", "snp.toml", "--emulate", "--hold")
		if out := h.run("vmlatch", "ps"); !strings.Contains(out, "sev-snp (emulated)") || !strings.Contains(out, "ID block, at release") {
			t.Errorf("ps: %s", out)
		}
		if out := h.fails("", "measure", "snp"); !strings.Contains(out, "sev-snp") {
			t.Errorf("measure: %s", out)
		}
		h.run("vmlatch", "release", "snp")
		if out := h.run("vmlatch", "ps"); !strings.Contains(out, "open: verified") {
			t.Errorf("ps: %s", out)
		}
		if b, err := os.ReadFile(report); err != nil || !strings.Contains(string(b), digest) || !strings.Contains(string(b), `"id-block": true`) ||
			!strings.Contains(string(b), base64.StdEncoding.EncodeToString([]byte(strings.Repeat("\t", 32)))) {
			t.Errorf("the platform's report does not show digest, ID block and host data: %v", err)
		}
		h.run("vmlatch", "stop", "snp", "--now")

		for change, want := range map[string]string{
			"cmdline = \"quiet\"|cmdline = \"loud\"": "the launch has another digest than the ID block",
			"cpus   = 2|cpus   = 1":                  "the launch has another digest than the ID block",
			"EPYC-Milan-v1|EPYC-v4":                  "the launch has another digest than the ID block",
			"technology    = |policy = [\"smt\", \"single-socket\"]\ntechnology = ": "the id block was signed for 0x30000",
			"EPYC-Milan-v1|host":                        "the registers that a CPU starts with are measured",
			"id-auth       = \"guest.id-auth\"|":        "go together",
			"kernel-hashes = true|policy = [\"debug\"]": "debug: the host could read",
		} {
			old, to, _ := strings.Cut(change, "|")
			h.write("snp.toml", strings.Replace(spec, old, to, 1))
			if out := h.fails("", "start", "snp.toml", "--emulate"); !strings.Contains(out, want) {
				t.Errorf("%s: %s\nwant %q", change, out, want)
			}
		}
		h.clearEnded()
		waitNothing(t, h.work)
	})
}

// newIDKey makes an ID key as PEM.
func newIDKey(t *testing.T) string {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
}

// TestIGVMNeedsQEMU: a QEMU without IGVM is told before anything starts.
func TestIGVMNeedsQEMU(t *testing.T) {
	h := newHost(t)
	h.write("guest.igvm", "IGVM and more")
	h.write("igvm.toml", strings.NewReplacer("OVMF.amdsev.fd", "guest.igvm", "kernel-hashes = true", "", `image   = "vmlinuz"`, "", `initrd  = "initrd.img"`, "", `cmdline = "quiet"`, "",
		"id-block      = \"guest.id-block\"", "", "id-auth       = \"guest.id-auth\"", "").Replace(snpSpec)+"[latch]\nuntil = \"nothing\"\n")
	if out := h.fails("", "plan", "igvm.toml", "--emulate"); !strings.Contains(out, "no object igvm-cfg") {
		t.Errorf("plan: %s", out)
	}
}
