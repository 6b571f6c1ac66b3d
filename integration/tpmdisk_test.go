package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/firmware/newc"
	"github.com/vmlatch/vmlatch/firmware/tpm/tpmtest"
	"github.com/vmlatch/vmlatch/integration/qemus"
)

const sealedSpec = `name = "vm"
memory = "768MiB"
qemu = %q
[firmware]
image = %q
[kernel]
image = %q
initrd = %q
cmdline = %q
[[disk]]
image = "root.img"
[tpm]
`

// sealedGuest is a plain guest on an encrypted disk, with a TPM.
type sealedGuest struct {
	*host
	firmware, kernel, initrd string
}

// spec writes its spec.
func (g *sealedGuest) spec(line string) {
	g.t.Helper()
	g.write("vm.toml", fmt.Sprintf(sealedSpec, qemus.Version(g.t, "11.1"), g.firmware, g.kernel, g.initrd, line))
}

// opened is what the initrd says once it has opened the disk.
const opened = "/dev/vda is open as /dev/mapper/root"

// boots starts it, and returns what its console says until its disk is open, or it powers off. What
// comes then takes longer, and is the same as for any disk.
func (g *sealedGuest) boots() (said string) {
	g.t.Helper()
	g.run("vmlatch", "start", "vm.toml")
	for end := time.Now().Add(4 * time.Minute); time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
		if said = g.run("vmlatch", "logs", "vm"); strings.Contains(said, opened) {
			g.run("vmlatch", "stop", "vm", "--now")
			return said
		}
		if strings.Contains(said, "and powers off") {
			break
		}
	}
	g.run("vmlatch", "wait", "vm")
	return said
}

// approve has the owner approve a boot with a command line, and the disk carry that.
func (g *sealedGuest) approve(version int, line string) {
	g.t.Helper()
	file := fmt.Sprintf("%d.approval", version)
	g.run("latchkey", "tpm", "approve", "--key", "approver.pem", "--name", "root", "--version", fmt.Sprint(version),
		"--firmware", g.firmware, "--kernel", g.kernel, "--initrd", g.initrd, "--cmdline", line,
		"--memory", "768MiB", "--qemu", "11.1", "--out", file)
	g.cryptsetup("token", "import", "--json-file", file, "root.img")
}

func (g *sealedGuest) cryptsetup(args ...string) string {
	g.t.Helper()
	cmd := exec.Command("/usr/sbin/cryptsetup", args...)
	cmd.Dir = g.work
	out, err := cmd.CombinedOutput()
	if err != nil {
		g.t.Fatalf("cryptsetup %v: %v: %s", args, err, out)
	}
	return string(out)
}

var saidPin = regexp.MustCompile(`latch\.tpm=([0-9a-f]{32})`)

// TestDiskByTPM: a root file system does not open by the guest's TPM after a boot with another
// command line than the one that its owner has approved, and opens once that one is approved too.
func TestDiskByTPM(t *testing.T) {
	t.Parallel()
	d, c := needDiskGuest(t), needCoco(t)
	c.needTDXFirmware(t)
	g := &sealedGuest{newHost(t), c.ovmf, c.kernel, strings.TrimSuffix(d.initrd, ".img") + ".plain"}
	copyDisk(t, d.disk, filepath.Join(g.work, "root.img"))
	copyDisk(t, d.key, filepath.Join(g.work, "key"))
	g.spec("panic=-1")
	g.run("vmlatch", "start", "--hold", "vm.toml") // makes the TPM
	g.run("vmlatch", "stop", "vm", "--now")
	g.write("vm.srk", g.run("vmlatch", "tpm", "srk", "vm"))
	g.run("latchkey", "tpm", "key", "approver.pem")
	g.run("latchkey", "tpm", "seal", "--srk", "vm.srk", "--name", "root", "--in", "key",
		"--approver", "approver.pem.pub", "--out", "root.tpm")
	pin := saidPin.FindStringSubmatch(g.run("latchkey", "tpm", "pin", "key"))
	if pin == nil {
		t.Fatal("no pin")
	}
	g.cryptsetup("token", "import", "--json-file", "root.tpm", "root.img")

	line := "console=ttyS0 quiet panic=-1 no_timer_check root=/dev/mapper/root latch.tpm=" + pin[1]
	g.approve(1, line)
	g.spec(line + " systemd.log_level=info")
	said := g.boots()
	for _, want := range []string{"PCR 9 is", "the kernel's command line and the initrd", "powers off"} {
		if !strings.Contains(said, want) {
			t.Errorf("another command line: the console lacks %q:\n%s", want, said)
		}
	}
	if strings.Contains(said, opened) {
		t.Errorf("another command line opens the disk:\n%s", said)
	}
	g.approve(2, line+" systemd.log_level=info")
	if said := g.boots(); !strings.Contains(said, opened) {
		t.Errorf("the approved boot:\n%s", said)
	}
	g.run("vmlatch", "rm", "--tpm", "vm")
	waitNothing(t, g.work)
}

const trustingSpec = `name = "vm"
memory = "256MiB"
qemu = %q
[firmware]
image = %q
[kernel]
image = %q
initrd = %q
cmdline = %q
[tpm]
[broker]
connect = "unix:broker.sock"
`

// enrol has the owner come to know the attestation key of a VM's TPM, which is not in use.
func (h *host) enrol(out string) {
	h.t.Helper()
	h.t.Run("enrol", func(t *testing.T) { // the TPM ends with it
		socket := tpmtest.StartOn(t, filepath.Join(h.work, "state/vm/tpm"))
		inGuest := func(args ...string) string { return h.run("latchguest-tpm", append(args, "--tpm", socket)...) }
		h.write("tpm-ca.pem", h.run("vmlatch", "tpm", "ca"))
		h.write("identity", inGuest("identity"))
		h.run("latchkey", "tpm", "credential", "make", "identity", "--tpm-root", "tpm-ca.pem", "--out", "challenge",
			"--keep", "pending")
		answer := strings.TrimSpace(inGuest("activate", "challenge"))
		h.run("latchkey", "tpm", "credential", "check", answer, "--keep", "pending", "--out", out)
	})
}

// TestSecretByTrustedHost: a guest that trusts its host gets its secret from its owner's broker, by
// a quote of its TPM over the boot that the owner's policy predicts, and not after another boot.
func TestSecretByTrustedHost(t *testing.T) {
	t.Parallel()
	c := needCoco(t)
	c.needTDXFirmware(t)
	h := newHost(t)
	b := h.newBroker(c.initrd)
	h.addToInitrd(b.image, "usr/bin/latchguest-tpm", filepath.Join(binaries, "latchguest-tpm"))
	if err := os.RemoveAll(filepath.Join(h.work, "keys")); err != nil {
		t.Fatal(err)
	}
	b.pin = strings.TrimSpace(h.run("latchkey", "broker", "init", "keys", "--host-trusted"))
	spec := func(line string) {
		h.write("vm.toml", fmt.Sprintf(trustingSpec, qemus.Version(t, "11.1"), c.ovmf, c.kernel, b.image, line))
	}
	line := strings.Replace(b.line(""), "latch.name=test-emulated", "latch.name=vm-host-trusted", 1)
	spec(line)
	out, err := h.attempt(h.command("vmlatch", "start", "vm.toml"))
	if err == nil || !strings.Contains(out, "latch.trust=host is missing") {
		t.Errorf("without the word: %v: %s", err, out)
	}
	line += "latch.trust=host"
	spec(line)
	h.run("vmlatch", "start", "--hold", "vm.toml") // makes the TPM
	h.run("vmlatch", "stop", "vm", "--now")
	h.enrol("vm.ak")
	h.write("cmdline", line)
	h.write("secret", "open sesame")
	h.write("policy.toml", fmt.Sprintf(`schema = "latch-policy/1"
name = "vm-host-trusted"
[guest]
firmware = %q
kernel = %q
initrd = %q
cmdline = "cmdline"
[vtpm]
keys = ["vm.ak"]
memory = "256MiB"
qemu = "11.1"
[[release]]
secret = "disk"
file = "secret"
mode = "repeat"
`, c.ovmf, c.kernel, b.image))
	out, err = h.attempt(h.command("latchkey", "policy", "check", "policy.toml", "--key", "keys"))
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	h.shows("policy", out, "vtpm  PCR9", "the host can have these secrets")
	h.write("bundle.json", "{\"schema\":\"latch-bundle/1\"}")
	b.serve()
	boots := func() string {
		h.run("vmlatch", "start", "vm.toml")
		h.run("vmlatch", "wait", "vm")
		return h.run("vmlatch", "logs", "vm")
	}
	const given = "secret disk is in /run/secrets/disk"
	if said := boots(); !strings.Contains(said, given) {
		t.Fatalf("the boot that the policy predicts:\n%s", said)
	}
	spec(line + " quiet")
	if said := boots(); strings.Contains(said, given) || !strings.Contains(said, deniedMeasurement) {
		t.Errorf("another command line:\n%s", said)
	}
	events := b.audit()
	if n := len(events["release"]); n != 1 || events["release"][0]["trust"] != "host" {
		t.Errorf("%d releases: %v", n, events["release"])
	}
	if list := events["deny"]; len(list) != 1 ||
		!strings.Contains(fmt.Sprint(list[0]["detail"]), "the command line") {
		t.Errorf("denials: %v", list)
	}
	b.stop()
	h.run("vmlatch", "rm", "--tpm", "vm")
	waitNothing(t, h.work)
}

// addToInitrd adds a program to an initrd, under a path.
func (h *host) addToInitrd(image, path, program string) {
	h.t.Helper()
	b, err := os.ReadFile(program)
	if err != nil {
		h.t.Fatal(err)
	}
	var files []newc.File
	for dir := filepath.Dir(path); dir != "."; dir = filepath.Dir(dir) {
		files = append([]newc.File{{Name: dir, Mode: newc.ModeDir}}, files...)
	}
	var more bytes.Buffer
	more.WriteString(read(h.t, image))
	err = newc.Write(&more, append(files, newc.File{Name: path, Mode: newc.ModeExec, Data: b}))
	if err == nil {
		err = os.WriteFile(image, more.Bytes(), 0o600)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// needTSS is an environment in which systemd's programs find the libraries that talk to a TPM.
func needTSS(t *testing.T) []string {
	t.Helper()
	libraries := filepath.Join(top(), ".cache/root/usr/lib/x86_64-linux-gnu")
	if _, err := os.Stat(filepath.Join(libraries, "libtss2-tcti-swtpm.so.0")); err != nil {
		t.Skipf("%v: run make setup", err)
	}
	return append(os.Environ(), "LD_LIBRARY_PATH="+libraries)
}

// TestHostsTPM: the key of a guest's TPM is a credential that systemd has sealed to the host's TPM.
func TestHostsTPM(t *testing.T) {
	t.Parallel()
	systemd := needTSS(t)
	needProgram(t, "systemd-creds")
	h := newTPMHost(t, "PATH="+os.Getenv("PATH"), "key = \"credential:tpm-key\"\n")
	socket := tpmtest.Start(t)
	h.write("key", strings.Repeat("k", 32))
	creds := func(args ...string) ([]byte, error) {
		cmd := exec.Command("systemd-creds", args...)
		cmd.Dir, cmd.Env = h.work, systemd
		return cmd.CombinedOutput()
	}
	out, err := creds("encrypt", "--with-key=tpm2", "--tpm2-device=swtpm:path="+socket, "--tpm2-pcrs=7",
		"--name=tpm-key", "key", "tpm-key.cred")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	decrypt := func() ([]byte, error) {
		return creds(
			"decrypt",
			"--tpm2-device=swtpm:path="+socket,
			"--name=tpm-key",
			"tpm-key.cred",
			"credentials/tpm-key",
		)
	}
	if err := os.Mkdir(filepath.Join(h.work, "credentials"), 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := decrypt(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	h.env = append(h.env, "CREDENTIALS_DIRECTORY="+filepath.Join(h.work, "credentials"))
	h.run("vmlatch", "start", "--hold", "vm.toml")
	h.run("vmlatch", "stop", "vm", "--now")
	h.shows("tpm", h.run("vmlatch", "tpm", "vm"), ", encrypted")
	tpm := tpmtest.Open(t, socket)
	if err := tpm.ExtendPCR(7, []byte("another host")); err != nil {
		t.Fatal(err)
	}
	_ = tpm.Close()
	if err := os.Remove(filepath.Join(h.work, "credentials/tpm-key")); err != nil {
		t.Fatal(err)
	}
	if out, err := decrypt(); err == nil {
		t.Errorf("the host's TPM gives the key after another boot: %s", out)
	}
	if out, err := h.attempt(h.command("vmlatch", "start", "--hold", "vm.toml")); err == nil ||
		!strings.Contains(out, "tpm-key") {
		t.Errorf("without its key: %v: %s", err, out)
	}
	h.run("vmlatch", "rm", "--tpm", "vm")
	waitNothing(t, h.work)
}

// TestSystemdsTokens: what systemd-cryptenroll has sealed opens a disk here, and only with its
// registers.
func TestSystemdsTokens(t *testing.T) {
	t.Parallel()
	systemd := needTSS(t)
	needProgram(t, "systemd-cryptenroll")
	g := &sealedGuest{host: newHost(t)}
	socket := tpmtest.Start(t)
	tpm := tpmtest.Open(t, socket)
	if err := tpm.ExtendPCR(4, []byte("kernel")); err != nil {
		t.Fatal(err)
	}
	_ = tpm.Close() // which serves one at a time
	g.write("key", "a passphrase")
	if err := os.Truncate(filepath.Join(g.work, "key"), 12); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(g.work, "image")
	g.write("image", "")
	if err := os.Truncate(image, 20<<20); err != nil {
		t.Fatal(err)
	}
	g.cryptsetup("luksFormat", "-q", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
		"--key-file", "key", "image")
	enroll := exec.Command("systemd-cryptenroll", "--tpm2-device=swtpm:path="+socket, "--tpm2-pcrs=4+9",
		"--unlock-key-file="+filepath.Join(g.work, "key"), image)
	enroll.Env = systemd
	if out, err := enroll.CombinedOutput(); err != nil {
		t.Fatalf("systemd-cryptenroll: %v: %s", err, out)
	}
	unseal := func() (string, error) {
		header, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		g.write("header", string(header[:16<<20]))
		out, err := g.attempt(g.command("latchguest-tpm", "unseal", "--tpm", socket, "--header", "header"))
		if read(t, filepath.Join(g.work, "header")) != string(header[:16<<20]) {
			t.Error("what was to be read was changed")
		}
		return out, err
	}
	passphrase, err := unseal()
	if err != nil {
		t.Fatalf("%v: %s", err, passphrase)
	}
	g.write("unsealed", passphrase)
	g.cryptsetup("open", "--test-passphrase", "--key-file", "unsealed", "image")
	tpm = tpmtest.Open(t, socket)
	if err := tpm.ExtendPCR(9, []byte("another initrd")); err != nil {
		t.Fatal(err)
	}
	_ = tpm.Close()
	if out, err := unseal(); err == nil || !strings.Contains(out, "not the one that the policy wants") {
		t.Errorf("with another PCR 9: %v: %s", err, out)
	}
}
