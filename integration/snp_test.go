package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"hash/crc32"
	"os"
	"os/exec"
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
	h.write("igvm.toml", "qemu = \""+qemus.Newest(t)+"\"\n"+strings.NewReplacer("OVMF.amdsev.fd", "guest.igvm", "kernel-hashes = true", "", `image   = "vmlinuz"`, "", `initrd  = "initrd.img"`, "", `cmdline = "quiet"`, "",
		"id-block      = \"guest.id-block\"", "", "id-auth       = \"guest.id-auth\"", "").Replace(snpSpec)+"[latch]\nuntil = \"nothing\"\n")
	if out := h.fails("", "plan", "igvm.toml", "--emulate"); !strings.Contains(out, "no object igvm-cfg") {
		t.Errorf("plan: %s", out)
	}
}

// igvmFile makes an IGVM file for SEV-SNP: a page, and a CPU context at an address.
func igvmFile(contextAt uint64) []byte {
	le := binary.LittleEndian
	var vars []byte
	header := func(t uint32, data []byte) {
		vars = le.AppendUint32(le.AppendUint32(vars, t), uint32(len(data)))
		vars = append(vars, data...)
		vars = append(vars, make([]byte, -len(data)&7)...)
	}
	platform := make([]byte, 16)
	platform[0], platform[4], platform[5] = 1, 2, 2
	header(1, platform)
	page := make([]byte, 24)
	le.PutUint64(page, 0x100000)
	page[8] = 1
	header(0x302, page)
	context := make([]byte, 20)
	le.PutUint64(context, contextAt)
	context[8] = 1
	le.PutUint32(context[12:], 24)
	header(0x304, context)
	file := []byte("IGVM")
	for _, v := range []uint32{1, 24, uint32(len(vars)), uint32(24 + len(vars)), 0} {
		file = le.AppendUint32(file, v)
	}
	le.PutUint32(file[20:], crc32.Update(crc32.ChecksumIEEE(file), crc32.IEEETable, vars))
	return append(file, vars...)
}

// TestIGVMPredicted: the documented command, and what it refuses.
func TestIGVMPredicted(t *testing.T) {
	h := newHost(t)
	h.write("guest.igvm", string(igvmFile(0xFFFFFFFFF000)))
	digest := strings.TrimSpace(h.run("latchkey", "measure", "--technology", "sev-snp", "--firmware", "guest.igvm"))
	if len(digest) != 96 {
		t.Errorf("digest %q", digest)
	}
	if out := h.run("latchkey", "explain", "--technology", "sev-snp", "--firmware", "guest.igvm", "--digest", digest); !strings.Contains(out, "nothing differs") {
		t.Errorf("explain: %s", out)
	}
	if out := h.run("latchkey", "firmware", "guest.igvm"); !strings.Contains(out, digest) {
		t.Errorf("firmware: %s", out)
	}
	h.write("odd.igvm", string(igvmFile(0x200000)))
	h.write("short.igvm", string(igvmFile(0xFFFFFFFFF000)[:60]))
	for _, c := range []struct{ args, want string }{
		{"measure --technology sev-snp --firmware guest.igvm --vcpus 4", "brings all that is measured"},
		{"measure --technology sev-snp --firmware guest.igvm --kernel vmlinuz", "brings all that is measured"},
		{"measure --technology sev --firmware guest.igvm", "for --technology sev-snp only"},
		{"measure --technology sev-snp --firmware odd.igvm", "which KVM has at"},
		{"measure --technology sev-snp --firmware short.igvm", "malformed IGVM file"},
		{"firmware short.igvm", "malformed IGVM file"},
		{"firmware diff guest.igvm odd.igvm", "cannot be compared"},
		{"measure --technology sev --firmware OVMF.amdsev.fd --svsm vmlinuz", "an SVSM needs"},
		{"explain --technology sev --firmware OVMF.amdsev.fd --other-firmware nothing --digest " + digest[:64], "no such file"},
		{"idblock make x --digest " + digest + " --id-key k --policy debug", "lets the host read"},
		{"idblock make x --digest " + digest + " --id-key k --policy 0", "bit 17 must be set"},
		{"idblock make x --digest " + digest + " --id-key k --svn 4294967296", "32 bits"},
	} {
		out, err := h.command("latchkey", strings.Fields(c.args)...).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(string(out), c.want) {
			t.Errorf("%s: %v, %s\nwant %q", c.args, err, out, c.want)
		}
	}
	h.write("id.pem", newIDKey(t))
	h.write("other.pem", newIDKey(t))
	h.run("latchkey", "idblock", "make", "guest", "--id-key", "id.pem", "--digest", digest, "--svn", "3")
	h.run("latchkey", "idblock", "check", "guest", "--id-key", "id.pem", "--digest", digest, "--svn", "3", "--policy", "smt")
	for _, more := range []string{"--id-key other.pem", "--svn 4", "--policy single-socket", "--author-key id.pem", "--image-id 00ff"} {
		out, err := h.command("latchkey", append([]string{"idblock", "check", "guest"}, strings.Fields(more)...)...).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 4 {
			t.Errorf("check %s: %v, %s", more, err, out)
		}
	}
}
