package integration

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/integration/qemus"
)

const measuredSpec = `name = "vm"
memory = "%s"
qemu = "%s"
[firmware]
image = "%s"
[kernel]
image = "vmlinuz"
initrd = "initrd.img"
cmdline = "%s"
[tpm]
model = "%s"
[[object]]
qom-type = "rng-random"
id = "rng0"
filename = "/dev/urandom"
[[device]]
driver = "virtio-rng-pci"
rng = "rng0"
`

var (
	saidPCR = regexp.MustCompile(`vmlatch-guest: pcr (\d+) ([0-9a-f]{64})`)
	saidLog = regexp.MustCompile(`vmlatch-guest: log (\S+)`)
)

// ofTPM is what a guest shows of its TPM: the registers that it reads itself, and the log.
func (h *host) ofTPM(log string) map[string]string {
	h.t.Helper()
	logs := h.run("vmlatch", "logs", "vm")
	pcrs := map[string]string{}
	for _, m := range saidPCR.FindAllStringSubmatch(logs, -1) {
		pcrs[m[1]] = m[2]
	}
	var text strings.Builder
	for _, m := range saidLog.FindAllStringSubmatch(logs, -1) {
		text.WriteString(m[1])
	}
	b, err := base64.StdEncoding.DecodeString(text.String())
	if err != nil || len(pcrs) != 16 || len(b) == 0 {
		h.t.Fatalf("%d PCRs, a log of %d bytes, %v:\n%s", len(pcrs), len(b), err, logs)
	}
	h.write(log, string(b))
	return pcrs
}

// makeUKI is a script that makes a unified kernel image, and a disk with a GPT that boots it.
const makeUKI = `set -e
PATH=$PATH:/usr/sbin
printf '%s' "$1" > cmdline
echo ID=test > osrel
objcopy --add-section .osrel=osrel --change-section-vma .osrel=0x20000 \
	--add-section .cmdline=cmdline --change-section-vma .cmdline=0x30000 \
	--add-section .linux=vmlinuz --change-section-vma .linux=0x2000000 \
	--add-section .initrd=initrd.img --change-section-vma .initrd=0x4000000 \
	/usr/lib/systemd/boot/efi/linuxx64.efi.stub uki.efi
truncate -s 63M esp
mkfs.vfat -F 32 esp
mmd -i esp ::EFI ::EFI/BOOT
mcopy -i esp uki.efi ::EFI/BOOT/BOOTX64.EFI
truncate -s 65M disk.img
printf 'label: gpt\nstart=2048,size=129024,type=U\n' | sfdisk disk.img
dd if=esp of=disk.img bs=1M seek=1 conv=notrunc
`

// TestMeasuredUKI: a unified kernel image that firmware starts from a disk is predicted, with the
// disk's partitions.
func TestMeasuredUKI(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/usr/lib/systemd/boot/efi/linuxx64.efi.stub"); err != nil {
		t.Skipf("%v: run make setup", err)
	}
	c := needCoco(t)
	c.needTDXFirmware(t)
	h := newHost(t)
	cmd := exec.Command("sh", "-c", makeUKI, "sh", "console=ttyS0 quiet no_timer_check vmlatch.tpm")
	cmd.Dir = h.work
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	h.write("vm.toml", fmt.Sprintf("name = \"vm\"\nqemu = \"%s\"\n[firmware]\nimage = \"%s\"\n"+
		"[[disk]]\nimage = \"disk.img\"\n[tpm]\n", qemus.Version(t, "10.0"), c.ovmf))
	h.run("vmlatch", "start", "vm.toml")
	h.run("vmlatch", "wait", "vm")
	pcrs := h.ofTPM("log")
	predict := []string{"pcrs", "--firmware", c.ovmf, "--uki", "uki.efi", "--disk", "disk.img"}
	want := h.run("latchkey", predict...)
	for _, pcr := range []string{"0", "2", "3", "4", "6", "7", "11", "12", "13"} {
		if !regexp.MustCompile(`(?m)^` + pcr + ` +\S+ +` + pcrs[pcr] + `$`).MatchString(want) {
			t.Errorf("the guest reads PCR %s as %s; predicted:\n%s", pcr, pcrs[pcr], want)
		}
	}
	out, err := h.attempt(h.command("latchkey", append(predict, "--log", "log")...))
	if err != nil && !strings.Contains(out, "in PCR 5\n") { // the firmware's services may end at a second try
		t.Errorf("its log: %v: %s", err, out)
	}
	h.run("vmlatch", "rm", "--tpm", "vm")
	waitNothing(t, h.work)
}

// TestSecureBoot: under Secure Boot the key that lets the kernel run is predicted too, also of a
// kernel that others have signed before; and where QEMU breaks the signature, nothing is.
func TestSecureBoot(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"sbsign", "openssl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%v: run make setup", err)
		}
	}
	newer := filepath.Join(top(), ".cache/root/usr/share/OVMF/OVMF_CODE_4M.secboot.fd")
	older, keys := "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/ovmf/PkKek-1-snakeoil"
	c := needCoco(t)
	c.needTDXFirmware(t)
	h := newHost(t)
	for _, args := range [][]string{
		{"openssl", "rsa", "-in", keys + ".key", "-passin", "pass:snakeoil", "-out", "key"},
		{"sbsign", "--key", "key", "--cert", keys + ".pem", "--output", "signed", "vmlinuz"}, // by Debian before
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = h.work
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	const line = "console=ttyS0 quiet no_timer_check vmlatch.tpm"
	predict := func(firmware, qemu string) string {
		t.Helper()
		return h.run("latchkey", "pcrs", "--firmware", firmware, "--vars", "vars.fd", "--kernel", "signed",
			"--initrd", "initrd.img", "--cmdline", line, "--memory", "512MiB", "--qemu", qemu)
	}
	h.write("vars.fd", read(t, "/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd"))
	broken := predict(older, "7.2")
	for _, pcr := range []string{"4", "7", "9"} {
		if !regexp.MustCompile(`(?m)^` + pcr + ` +unknown +-$`).MatchString(broken) {
			t.Errorf("PCR %s is predicted where QEMU breaks the signature:\n%s", pcr, broken)
		}
	}
	want := predict(newer, "11.1")
	spec := strings.Replace(
		measuredSpec,
		"image = \"%s\"\n",
		"image = \"%s\"\nvars = \"vars.fd\"\nsecure-boot = true\n",
		1,
	)
	spec = strings.Replace(spec, "image = \"vmlinuz\"", "image = \"signed\"", 1)
	h.write("vm.toml", fmt.Sprintf(spec, "512MiB", qemus.Version(t, "11.1"), newer, line, "crb"))
	h.run("vmlatch", "start", "vm.toml")
	h.run("vmlatch", "wait", "vm")
	pcrs := h.ofTPM("log")
	for _, pcr := range []string{"2", "3", "4", "6", "7", "9"} {
		if !regexp.MustCompile(`(?m)^` + pcr + ` +\S+ +` + pcrs[pcr] + `$`).MatchString(want) {
			t.Errorf("the guest reads PCR %s as %s; predicted:\n%s", pcr, pcrs[pcr], want)
		}
	}
	h.run("vmlatch", "rm", "--tpm", "vm")
	waitNothing(t, h.work)
}

// TestSecureBootVariables: variables of firmware with Secure Boot stay with the VM's name, and are
// not removed in passing.
func TestSecureBootVariables(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.write("vm.toml", "name = \"vm\"\nmemory = \"64MiB\"\n[firmware]\nsecure-boot = true\n")
	out, err := h.attempt(h.command("vmlatch", "start", "--hold", "vm.toml"))
	if err != nil && strings.Contains(out, "no descriptor on this machine offers") {
		t.Skip("this machine has no firmware with keys enrolled")
	}
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	h.run("vmlatch", "stop", "vm", "--now")
	vars := filepath.Join(h.work, "state/vm/vars.fd")
	if _, err := os.Stat(vars); err != nil {
		t.Fatal(err)
	}
	text := read(t, vars)
	const mark = "written by a guest"
	h.write("state/vm/vars.fd", text[:len(text)-len(mark)]+mark)
	h.run("vmlatch", "start", "--hold", "vm.toml")
	h.run("vmlatch", "stop", "vm", "--now")
	if !strings.HasSuffix(read(t, vars), mark) {
		t.Error("the second start has made new variables")
	}
	for _, args := range [][]string{{"rm", "vm"}, {"rm", "--tpm", "vm"}} {
		out, err := h.attempt(h.command("vmlatch", args...))
		if err == nil || !strings.Contains(out, "rm --vars removes them") {
			t.Errorf("%v: %v: %s", args, err, out)
		}
	}
	h.run("vmlatch", "rm", "--vars", "vm")
	waitNothing(t, h.work)

	// A link in their place would have QEMU write elsewhere.
	if err := os.MkdirAll(filepath.Join(h.work, "state/vm"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(h.work, "elsewhere"), vars); err != nil {
		t.Fatal(err)
	}
	if out, err := h.attempt(h.command("vmlatch", "start", "--hold", "vm.toml")); err == nil {
		t.Errorf("started with a link: %s", out)
	}
	if err := os.Remove(vars); err != nil {
		t.Fatal(err)
	}
	// A start that fails leaves none.
	h.write(
		"vm.toml",
		read(t, filepath.Join(h.work, "vm.toml"))+"[[device]]\ndriver = \"virtio-rng-pci\"\nrng = \"none\"\n",
	)
	if out, err := h.attempt(h.command("vmlatch", "start", "--hold", "vm.toml")); err == nil {
		t.Errorf("started: %s", out)
	}
	if _, err := os.Stat(vars); err == nil {
		t.Error("a start that failed leaves variables")
	}
	_, _ = h.attempt(h.command("vmlatch", "rm", "vm"))
	waitNothing(t, h.work)
}

// TestMeasuredBoot: what is predicted from the files is what guests read from their TPMs, by
// version of QEMU and of the firmware; and a change is explained.
func TestMeasuredBoot(t *testing.T) {
	t.Parallel()
	newer := filepath.Join(top(), ".cache/guest/coco/OVMF.fd")
	for name, x := range map[string]struct{ qemu, firmware, memory, model string }{
		"old firmware, QEMU 7.2":  {"7.2", "/usr/share/ovmf/OVMF.fd", "512MiB", "crb"},
		"new firmware, QEMU 7.2":  {"7.2", newer, "768MiB", "tis"},
		"new firmware, QEMU 10.0": {"10.0", newer, "512MiB", "crb"},
		"new firmware, QEMU 11.1": {"11.1", newer, "512MiB", "crb"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if x.firmware == newer {
				c := needCoco(t)
				c.needTDXFirmware(t)
			}
			h := newHost(t)
			const line = "console=ttyS0 quiet no_timer_check vmlatch.tpm"
			qemu := qemus.Version(t, x.qemu)
			h.write("vm.toml", fmt.Sprintf(measuredSpec, x.memory, qemu, x.firmware, line, x.model))
			h.run("vmlatch", "start", "vm.toml")
			h.run("vmlatch", "plan", "--tables", "tables.json", "vm.toml") // next to the VM
			h.run("vmlatch", "wait", "vm")
			pcrs := h.ofTPM("log")

			// The prediction without the log, held against what the guest read.
			predict := []string{
				"pcrs", "--json", "--firmware", x.firmware, "--kernel", "vmlinuz", "--initrd", "initrd.img",
				"--cmdline", line, "--memory", x.memory, "--tables", "tables.json",
			}
			var r struct {
				PCRs []struct {
					PCR       int
					Certainty string
					Why       string
					Values    map[string]string
				}
			}
			if err := json.Unmarshal([]byte(h.run("latchkey", predict...)), &r); err != nil {
				t.Fatal(err)
			}
			exact := 0
			for _, p := range r.PCRs {
				switch got := pcrs[fmt.Sprint(p.PCR)]; {
				case p.Certainty == "unknown":
				case p.Values["sha256"] == got:
					exact++
				case p.PCR == 5 && p.Certainty == "depends-on": // the firmware's services may end at a second try
				default:
					t.Errorf("PCR %d (%s: %s): predicted %s, the guest reads %s", p.PCR, p.Certainty, p.Why,
						p.Values["sha256"], got)
				}
			}
			if want := map[bool]int{true: 15, false: 13}[x.firmware == newer]; exact < want { // 5 may differ
				t.Errorf("%d of 16 PCRs are predicted, want %d: %+v", exact, want, r.PCRs)
			}

			// The guest's log leads to what it read, and a changed line is named.
			out, _ := h.attempt(h.command("latchkey", "pcrs", "--json", "--log", "log"))
			if !strings.Contains(out, pcrs["9"]) || !strings.Contains(out, pcrs["0"]) {
				t.Errorf("the log does not lead to the registers: %s\n%v", out, pcrs)
			}
			changed := append([]string{}, predict...)
			for i, a := range changed {
				if a == line {
					changed[i] = line + " init=/bin/sh"
				}
			}
			out, err := h.attempt(h.command("latchkey", append(changed, "--log", "log")...))
			if err == nil || !strings.Contains(out, `it lacks \"init=/bin/sh\"`) {
				t.Errorf("another command line: %v: %s", err, out)
			}
			h.run("vmlatch", "rm", "--tpm", "vm")
			waitNothing(t, h.work)
			if _, err := os.Stat(filepath.Join(h.work, "state", "vm")); err == nil {
				t.Error("rm --tpm has left files")
			}
		})
	}
}
