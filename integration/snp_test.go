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
		digest := strings.TrimSpace(h.run("latchkey", "measure", "--technology", "sev-snp",
			"--firmware", "OVMF.amdsev.fd", "--cpu", "EPYC-Milan", "--vcpus", "2",
			"--kernel", "vmlinuz", "--initrd", "initrd.img", "--cmdline", "quiet"))
		h.run("latchkey", "idblock", "make", "guest", "--id-key", "id.pem", "--digest", digest)

		h.run("vmlatch", "start", "snp.toml", "--emulate", "--hold")
		h.shows("ps of a held VM", h.run("vmlatch", "ps"), "sev-snp (emulated)", "ID block, at release")
		h.shows("measure", h.fails("", "measure", "snp"), "sev-snp")
		h.run("vmlatch", "release", "snp")
		h.shows("ps of a released VM", h.run("vmlatch", "ps"), "open: verified")
		b, err := os.ReadFile(report)
		if err != nil {
			t.Fatal(err)
		}
		hostData := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("\t", 32)))
		h.shows("the platform's report", string(b), digest, `"id-block": true`, hostData)
		h.run("vmlatch", "stop", "snp", "--now")

		const otherDigest = "the launch digest differs from the one in the ID block"
		for _, c := range []struct{ old, to, want string }{
			{`cmdline = "quiet"`, `cmdline = "loud"`, otherDigest},
			{"cpus   = 2", "cpus   = 1", otherDigest},
			{"EPYC-Milan-v1", "EPYC-v4", otherDigest},
			{
				old:  "technology    = ",
				to:   "policy = [\"smt\", \"single-socket\"]\ntechnology = ",
				want: "the id block was signed for 0x30000",
			},
			{"EPYC-Milan-v1", "host", "the registers that a CPU starts with are measured"},
			{`id-auth       = "guest.id-auth"`, "", "go together"},
			{"kernel-hashes = true", `policy = ["debug"]`, "debug: the host could read"},
		} {
			h.write("snp.toml", strings.Replace(spec, c.old, c.to, 1))
			h.shows("with "+c.to, h.fails("", "start", "snp.toml", "--emulate"), c.want)
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

// TestIGVMNeedsQEMU: that QEMU has no IGVM is reported before anything starts.
func TestIGVMNeedsQEMU(t *testing.T) {
	h := newHost(t)
	h.write("guest.igvm", "IGVM and more")
	spec := strings.NewReplacer(
		"OVMF.amdsev.fd", "guest.igvm",
		"kernel-hashes = true", "",
		`image   = "vmlinuz"`, "",
		`initrd  = "initrd.img"`, "",
		`cmdline = "quiet"`, "",
		`id-block      = "guest.id-block"`, "",
		`id-auth       = "guest.id-auth"`, "",
	).Replace(snpSpec)
	h.write("igvm.toml", "qemu = \""+qemus.Newest(t)+"\"\n"+spec+"[latch]\nuntil = \"nothing\"\n")
	h.shows("plan", h.fails("", "plan", "igvm.toml", "--emulate"), "no object igvm-cfg")
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
		t.Errorf("digest %q, want 96 digits", digest)
	}
	h.shows("explain",
		h.run("latchkey", "explain", "--technology", "sev-snp", "--firmware", "guest.igvm", "--digest", digest),
		"nothing differs")
	h.shows("firmware", h.run("latchkey", "firmware", "guest.igvm"), digest)
	four := h.run("latchkey", "measure", "--technology", "sev-snp", "--firmware", "guest.igvm", "--vcpus", "4")
	if len(strings.TrimSpace(four)) != 96 || strings.TrimSpace(four) == digest {
		t.Errorf("digest for four vCPUs %q, want one of its own: KVM measures a register page for each", four)
	}
	h.write("odd.igvm", string(igvmFile(0x200000)))
	h.write("short.igvm", string(igvmFile(0xFFFFFFFFF000)[:60]))
	for _, c := range []struct{ args, want string }{
		{"measure --technology sev-snp --firmware guest.igvm --kernel vmlinuz", "brings all that is measured"},
		{"measure --technology sev --firmware guest.igvm", "for --technology sev-snp only"},
		{"measure --technology sev-snp --firmware odd.igvm", "which KVM has at"},
		{"measure --technology sev-snp --firmware short.igvm", "malformed IGVM file"},
		{"firmware short.igvm", "malformed IGVM file"},
		{"firmware diff guest.igvm odd.igvm", "cannot be compared"},
		{"measure --technology sev --firmware OVMF.amdsev.fd --svsm vmlinuz", "an SVSM needs"},
		{
			args: "explain --technology sev --firmware OVMF.amdsev.fd --other-firmware nothing --digest " + digest[:64],
			want: "no such file",
		},
		{"idblock make x --digest " + digest + " --id-key k --policy debug", "lets the host read"},
		{"idblock make x --digest " + digest + " --id-key k --policy 0", "bit 17 must be set"},
		{"idblock make x --digest " + digest + " --id-key k --svn 4294967296", "32 bits"},
	} {
		out, err := h.command("latchkey", strings.Fields(c.args)...).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(string(out), c.want) {
			t.Errorf("%s: %v, %s\nwant code 2 and %q", c.args, err, out, c.want)
		}
	}
	h.write("id.pem", newIDKey(t))
	h.write("other.pem", newIDKey(t))
	h.run("latchkey", "idblock", "make", "guest", "--id-key", "id.pem", "--digest", digest, "--svn", "3")
	h.run("latchkey", "idblock", "check", "guest",
		"--id-key", "id.pem", "--digest", digest, "--svn", "3", "--policy", "smt")
	for _, more := range []string{
		"--id-key other.pem",
		"--svn 4",
		"--policy single-socket",
		"--author-key id.pem",
		"--image-id 00ff",
	} {
		args := append([]string{"idblock", "check", "guest"}, strings.Fields(more)...)
		out, err := h.command("latchkey", args...).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 4 {
			t.Errorf("check %s: %v, want code 4: %s", more, err, out)
		}
	}
}
