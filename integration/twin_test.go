package integration

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/integration/qemus"
)

// coco is the test guest whose kernel can be a guest of SEV-SNP and TDX.
type coco struct{ kernel, initrd, ovmf string }

func needCoco(t testing.TB) coco {
	t.Helper()
	dir := filepath.Join(top(), ".cache/guest/coco")
	if why, err := os.ReadFile(filepath.Join(dir, "unavailable")); err == nil {
		t.Skipf("the registry lacks a kernel for guests of SEV-SNP and TDX: %s", bytes.TrimSpace(why))
	}
	c := coco{filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd.img"), filepath.Join(dir, "OVMF.fd")}
	for _, f := range []string{c.kernel, c.initrd} {
		if _, err := os.Stat(f); err != nil {
			t.Skipf("%v: run make qemu-matrix", err)
		}
	}
	return c
}

// needTDXFirmware skips without firmware that describes itself for TDX.
func (c *coco) needTDXFirmware(t testing.TB) {
	t.Helper()
	if why, err := os.ReadFile(filepath.Join(top(), ".cache/root/ovmf-generic.unavailable")); err == nil {
		t.Skipf("the registry lacks ovmf-generic: %s", bytes.TrimSpace(why))
	}
	if _, err := os.Stat(c.ovmf); err != nil {
		t.Skipf("%v: run make qemu-matrix", err)
	}
}

// guestLine is a command line for a confidential guest; what differs is added.
type guestLine struct {
	qemu, object, machine, cpu string
	bios, kernel, initrd       string
	append                     string
	config                     string // the owner's file with [config]; "" for none
	more                       []string
}

func (g guestLine) args() []string {
	args := []string{
		g.qemu, "-machine", "q35,vmport=off,confidential-guest-support=cgs0" + g.machine, "-accel", "kvm",
		"-cpu", g.cpu, "-smp", "1", "-m", "384", "-bios", g.bios, "-nodefaults", "-display", "none",
		"-serial", "stdio", "-no-reboot", "-object", g.object,
	}
	if g.kernel != "" {
		args = append(args, "-kernel", g.kernel, "-initrd", g.initrd, "-append", g.append)
	}
	return append(args, g.more...)
}

const (
	snpObject = "sev-snp-guest,id=cgs0,cbitpos=51,reduced-phys-bits=1,kernel-hashes=on"
	cocoLine  = "console=ttyS0 quiet"
)

func (h *host) snpLine(c coco, qemu string) guestLine {
	return guestLine{
		qemu: qemu, object: snpObject, cpu: "EPYC-Milan", bios: filepath.Join(h.work, "OVMF.amdsev.fd"),
		kernel: c.kernel, initrd: c.initrd, append: cocoLine,
	}
}

func (h *host) tdxLine(c coco, qemu string) guestLine {
	return guestLine{
		qemu: qemu, object: "tdx-guest,id=cgs0", machine: ",kernel_irqchip=split", cpu: "host", bios: c.ovmf,
		kernel: c.kernel, initrd: c.initrd, append: cocoLine,
	}
}

// sevLine is a guest of SEV, or with policy 5 of SEV-ES.
func (h *host) sevLine(qemu string, policy int) guestLine {
	return guestLine{
		qemu: qemu, cpu: "EPYC-Milan", bios: filepath.Join(h.work, "OVMF.amdsev.fd"),
		object: fmt.Sprintf("sev-guest,id=cgs0,cbitpos=51,reduced-phys-bits=1,kernel-hashes=on,policy=%d", policy),
		kernel: filepath.Join(h.work, "vmlinuz"), initrd: filepath.Join(h.work, "initrd.img"), append: cocoLine,
	}
}

// twin runs a guest until it ends, or until what it prints matches; with options for swtee.
func (h *host) twin(g guestLine, until string, options ...string) (out string, code int) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	args := append([]string{"--accel", "twin"}, options...)
	cmd := h.command("swtee", append(append(args, "--"), g.args()...)...)
	var buf watched
	if until != "" {
		buf.re, buf.seen = regexp.MustCompile(until), make(chan struct{})
	}
	cmd.Stdout, cmd.Stderr = &buf, &buf
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var err error
	select {
	case err = <-ended:
	case <-buf.seen:
		_ = cmd.Process.Kill()
		<-ended
		return buf.String(), -1
	case <-ctx.Done():
		_ = cmd.Process.Kill()
		<-ended
		h.t.Errorf("swtee %v does not end: %s", options, buf.String())
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	}
	return buf.String(), code
}

// nonce is what the guest asks for evidence over.
var nonce = strings.Repeat("a5", 64)

var evidenceLine = regexp.MustCompile(`vmlatch-guest: evidence (\S+) (\S+)`)

// evidence is the last that a guest printed.
func (h *host) evidence(out string) (provider string, b []byte) {
	h.t.Helper()
	all := evidenceLine.FindAllStringSubmatch(out, -1)
	if all == nil {
		h.t.Fatalf("the guest gave no evidence: %s", out)
	}
	m := all[len(all)-1]
	b, err := base64.StdEncoding.DecodeString(m[2])
	if err != nil {
		h.t.Fatal(err)
	}
	return m[1], b
}

// ownersDesk has what an owner of guests on the emulated platform needs: its root, a bundle, and a
// policy for guests of these files.
func (h *host) ownersDesk(policy string) {
	h.t.Helper()
	h.write("root.pem", h.run("swtee", "root"))
	h.run("swtee", "collateral", "--out", "parts")
	parts, err := filepath.Glob(filepath.Join(h.work, "parts/*"))
	if err != nil {
		h.t.Fatal(err)
	}
	h.run("latchkey", append([]string{"bundle", "add", "bundle.json", "--trust-root", "root.pem"}, parts...)...)
	h.write("policy.toml", policy)
}

// policyFor is the owner's policy for a guest.
func (g *guestLine) policyFor(tables string) string {
	if g.config != "" {
		tables = fmt.Sprintf("config = %q\n%s", g.config, tables)
	}
	return fmt.Sprintf(`schema = "latch-policy/1"
name = "test-emulated"
[emulated]
root = "root.pem"
[guest]
firmware = %q
kernel = %q
initrd = %q
cmdline = "cmdline"
cpus = 1
cpu = "EPYC-Milan"
%s`, g.bios, g.kernel, g.initrd, tables)
}

const (
	snpTables = "[sev-snp]\nchips = \"any\"\nhost-acpi = \"accept\"\npolicy = [\"smt\"]\n"
	tdxTables = "[tdx]\nchips = \"any\"\nhost-acpi = \"accept\"\nrtmr0 = \"emulated-zero\"\n" +
		"accept-tcb = [\"UpToDate\"]\n" +
		"firmware-profile = \"edk2-2026.08\"\n"
)

// verdict is latchkey's on evidence, by the policy of the desk.
func (h *host) verdict(kind string, b []byte, more ...string) (accepted bool, reason string) {
	h.t.Helper()
	h.write("evidence.bin", string(b))
	args := append(
		[]string{kind, "verify", "evidence.bin", "--policy", "policy.toml", "--bundle", "bundle.json", "--json"},
		more...)
	cmd := h.command("latchkey", args...)
	out, err := cmd.Output()
	var v struct {
		Accepted, Emulated bool
		Refusal            struct{ Reason string }
	}
	if json.Unmarshal(out, &v) != nil {
		var exit *exec.ExitError
		errors.As(err, &exit)
		h.t.Fatalf("latchkey %v: %v: %s %s", args, err, out, exit.Stderr)
	}
	if v.Accepted && !v.Emulated {
		h.t.Error("the verdict does not say that this is emulated")
	}
	return v.Accepted, v.Refusal.Reason
}

// TestTwinSNP: a guest of SEV-SNP is launched by QEMU's own code, boots, and proves itself to an
// owner who trusts the test root, and to no other.
func TestTwinSNP(t *testing.T) {
	t.Parallel()
	c := needCoco(t)
	for version, way := range map[string]string{"10.0": "sev-guest", "11.1": "configfs-tsm"} {
		t.Run(version, func(t *testing.T) {
			h := newHost(t)
			g := h.snpLine(c, qemus.Version(t, version))
			g.append = cocoLine + " vmlatch.probe vmlatch.nonce=" + nonce + " vmlatch.by=" + way
			if version == "10.0" { // as confidential guests do: the devices' memory is not the guest's
				g.append += " swiotlb=force"
			}
			h.write("cmdline", g.append)
			h.ownersDesk(g.policyFor(snpTables))
			options := []string{"--report", "report.json", "--report-version", "5"}
			if version == "10.0" { // throttled at first, which the guest does not notice
				options = []string{"--report", "report.json", "--fault", "SNP_GUEST_REQUEST:1=EAGAIN"}
			}
			out, code := h.twin(g, "", options...)
			if code != 0 {
				t.Fatalf("code %d: %s", code, out)
			}
			want := map[string]string{"sev-guest": "/dev/sev-guest", "configfs-tsm": "sev_guest"}[way]
			provider, b := h.evidence(out)
			if provider != want {
				t.Errorf("provider %q, want %q", provider, want)
			}
			if ok, why := h.verdict("report", b, "--report-data", nonce); !ok {
				t.Errorf("refused: %s", why)
			}
			if ok, why := h.verdict("report", b, "--report-data", strings.Repeat("00", 64)); ok ||
				why != "report-data" {
				t.Errorf("with another nonce: accepted %t, %q", ok, why)
			}
			for _, bit := range []int{0x90, 0x50, 0x2a0} {
				flipped := bytes.Clone(b)
				flipped[bit] ^= 1
				if ok, why := h.verdict("report", flipped); ok || why != "signature" {
					t.Errorf("with a bit at %#x flipped: accepted %t, %q", bit, ok, why)
				}
			}
			h.write("cmdline", g.append+" init=/bin/sh")
			if ok, why := h.verdict("report", b); ok || why != "measurement" {
				t.Errorf("for another command line: accepted %t, %q", ok, why)
			}
			h.write("cmdline", g.append)
			h.withoutTheRoot("report", b)
			h.asTheKernels(c, "sev", out)
			report, err := os.ReadFile(filepath.Join(h.work, "report.json"))
			if err != nil || !strings.Contains(string(report), hex.EncodeToString(b[0x90:0xc0])) {
				t.Errorf("the platform's report has another digest, %v", err)
			}
			waitNothing(t, h.work)
		})
	}
}

// withoutTheRoot: an owner who has not named the test root refuses.
func (h *host) withoutTheRoot(kind string, b []byte) {
	h.t.Helper()
	h.write("evidence.bin", string(b))
	out, err := h.attempt(
		h.command("latchkey", kind, "verify", "evidence.bin", "--genuine", "--bundle", "bundle.json"),
	)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 4 {
		h.t.Errorf("without the test root: %v: %s", err, out)
	}
}

// TestTwinTDX: the same for a trust domain, whose kernel only the registers name.
func TestTwinTDX(t *testing.T) {
	t.Parallel()
	c := needCoco(t)
	c.needTDXFirmware(t)
	h := newHost(t)
	g := h.tdxLine(c, qemus.Version(t, "11.1"))
	digest := strings.Repeat("3b", 48)
	g.append = cocoLine + " vmlatch.probe vmlatch.interface=configfs-tsm,rtmr vmlatch.rtmr3=" + digest +
		" vmlatch.nonce=" + nonce
	h.write("cmdline", g.append)
	policy := g.policyFor(tdxTables)
	h.ownersDesk(policy)
	out, code := h.twin(g, "", "--quote-version", "5")
	if code != 0 {
		t.Fatalf("code %d: %s", code, out)
	}
	provider, b := h.evidence(out)
	if ok, why := h.verdict("quote", b, "--report-data", nonce); !ok || provider != "tdx_guest" {
		t.Errorf("by %s, refused: %s", provider, why)
	}
	h.withoutTheRoot("quote", b)
	h.asTheKernels(c, "tdx", out)
	h.shows("swtee and the guest", out, "RTMR3 extended: <nil>", "as firmware of profile edk2-2026.08 would",
		"RTMR0 is zero")
	const header, rtmr3 = 48 + 6, 328 + 3*48 // a quote of version 5 describes its body
	extended := sha512.Sum384(append(make([]byte, 48), bytes.Repeat([]byte{0x3b}, 48)...))
	if got := b[header+rtmr3:][:48]; !bytes.Equal(got, extended[:]) {
		t.Errorf("RTMR3 is %x, want %x", got, extended)
	}
	h.write("policy.toml", strings.Replace(policy, `"emulated-zero"`, `"exact:`+strings.Repeat("11", 48)+`"`, 1))
	if ok, why := h.verdict("quote", b); ok || why != "rtmr" {
		t.Errorf("with a demand for RTMR0: accepted %t, %q", ok, why)
	}
	// What a host would have to swap is named by the registers.
	kernel, err := os.ReadFile(c.kernel)
	if err != nil {
		t.Fatal(err)
	}
	kernel[len(kernel)/2] ^= 1
	h.write("other-kernel", string(kernel))
	h.write("policy.toml", strings.Replace(policy, c.kernel, filepath.Join(h.work, "other-kernel"), 1))
	if ok, why := h.verdict("quote", b); ok || why != "rtmr" {
		t.Errorf("for another kernel: accepted %t, %q", ok, why)
	}
	h.write("policy.toml", strings.Replace(policy, c.initrd, filepath.Join(h.work, "initrd.img"), 1))
	if ok, why := h.verdict("quote", b); ok || why != "rtmr" {
		t.Errorf("for another initrd: accepted %t, %q", ok, why)
	}
	h.write("policy.toml", policy)
	h.write("cmdline", "other")
	if ok, why := h.verdict("quote", b); ok || why != "rtmr" {
		t.Errorf("for another command line: accepted %t, %q", ok, why)
	}
	waitNothing(t, h.work)
}

// TestSwteeGuest runs swtee itself in a guest: it returns once programs can ask, and says in the
// kernel's log that this is emulated.
func TestSwteeGuest(t *testing.T) {
	t.Parallel()
	c := needCoco(t)
	h := newHost(t)
	program := filepath.Join(h.work, "swtee")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "../cmd/swtee")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	h.write("initrd", read(t, c.initrd))
	h.addToInitrd(filepath.Join(h.work, "initrd"), "swtee", program)
	g := h.snpLine(c, qemus.Version(t, "10.0"))
	g.initrd, g.append = filepath.Join(h.work, "initrd"), "console=ttyS0 vmlatch.helper=/swtee"
	out, code := h.twin(g, "")
	if code != 0 {
		t.Errorf("code %d", code)
	}
	h.shows(
		"the guest's console",
		out,
		"swtee: EMULATED sev-snp, served by process ",
		"swtee: EMULATED sev-snp: configfs-tsm, sev-guest",
		"vmlatch-guest: evidence sev_guest ",
	)
	waitNothing(t, h.work)
}
