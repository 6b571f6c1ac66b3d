package integration

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/integration/qemus"
)

// broker is an owner's broker, and the guest that asks it.
type broker struct {
	*host
	pin    string
	socket string
	image  string // initrd with the agent
	stop   func()
}

// newBroker makes a broker's key, and an initrd whose init runs latchguest; none without a first
// part.
func (h *host) newBroker(first string) *broker {
	h.t.Helper()
	b := &broker{host: h, socket: filepath.Join(h.work, "broker.sock"), image: filepath.Join(h.work, "initrd-agent")}
	b.pin = strings.TrimSpace(h.run("latchkey", "broker", "init", "keys"))
	if first == "" {
		return b
	}
	h.write("initrd-agent", read(h.t, first))
	h.addToInitrd(b.image, "latchguest", filepath.Join(binaries, "latchguest"))
	return b
}

// serve starts the broker, and waits until it listens.
func (b *broker) serve(more ...string) {
	b.t.Helper()
	args := append([]string{
		"serve", "--key", "keys", "--listen", "unix:" + b.socket, "--policy", "policy.toml", "--bundle", "bundle.json",
		"--state", "broker-state",
	}, more...)
	cmd := b.command("latchkey", args...)
	log, err := cmd.StderrPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	r := bufio.NewReader(log)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			b.t.Fatalf("latchkey serve: %v", cmd.Wait())
		}
		if strings.Contains(line, "listening on") {
			break
		}
		b.t.Log(strings.TrimSpace(line))
	}
	go func() {
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			b.t.Log(strings.TrimSpace(line))
		}
	}()
	b.stop = func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		b.stop = func() {}
	}
	b.t.Cleanup(func() { b.stop() })
}

// line is a command line that names the broker.
func (b *broker) line(words string) string {
	return cocoLine + " panic=-1 " + b.pin + " latch.name=test-emulated latch.broker=port vmlatch.run=/latchguest " +
		"vmlatch.args=--secret,disk=/run/secrets/disk,--timeout,30s " + words
}

// port is the way to the broker, which QEMU connects by itself.
func (b *broker) port() []string {
	return []string{
		"-device", "virtio-serial-pci,id=latch", "-chardev", "socket,id=broker,path=" + b.socket + ",reconnect-ms=500",
		"-device", "virtserialport,bus=latch.0,chardev=broker,name=org.vmlatch.broker.0",
	}
}

// audit are the events of the broker's log, by their kind.
func (b *broker) audit() map[string][]map[string]any {
	b.t.Helper()
	b.run("latchkey", "audit", "verify", "broker-state/audit.jsonl")
	text, err := os.ReadFile(filepath.Join(b.work, "broker-state/audit.jsonl"))
	if err != nil {
		b.t.Fatal(err)
	}
	found := map[string][]map[string]any{}
	for line := range strings.Lines(string(text)) {
		var e map[string]any
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			b.t.Fatal(err)
		}
		kind, _ := e["event"].(string)
		found[kind] = append(found[kind], e)
	}
	return found
}

const brokerSecret = "correct horse battery staple"

const releaseTable = "[[release]]\nsecret = \"disk\"\nfile = \"secret\"\nmode = \"repeat\"\n"

var gotSecret = regexp.MustCompile(fmt.Sprintf(`file /run/secrets/disk: mode 0600, sha256 %x`,
	sha256.Sum256([]byte(brokerSecret))))

// TestBroker: a guest of SEV-SNP and one of TDX prove themselves over a port that its host carries,
// and get their secret. TestUnattended and TestDiskStaysShut have those that get none.
func TestBroker(t *testing.T) {
	t.Parallel()
	c := needCoco(t)
	for technology, words := range map[string]string{
		"sev-snp": "", "tdx": "vmlatch.interface=configfs-tsm,rtmr",
	} {
		t.Run(technology, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			g, tables := h.snpLine(c, qemus.Version(t, "11.1")), snpTables
			if technology == "tdx" {
				c.needTDXFirmware(t)
				g, tables = h.tdxLine(c, qemus.Version(t, "11.1")), tdxTables
			}
			b := h.newBroker(c.initrd)
			g.initrd, g.append, g.more = b.image, b.line(words), b.port()
			h.write("secret", brokerSecret)
			h.write("cmdline", g.append)
			h.ownersDesk(g.policyFor(tables) + releaseTable)
			b.serve()
			out, code := h.twin(g, "")
			if code != 0 || !gotSecret.MatchString(out) {
				t.Fatalf("code %d: %s", code, out)
			}
			if strings.Contains(out, brokerSecret) {
				t.Error("the secret is on the console")
			}
			events := b.audit()
			if len(events["release"]) != 1 || len(events["receipt"]) != 1 ||
				events["release"][0]["technology"] != technology {
				t.Errorf("the audit says %v", events)
			}
			b.stop()
			waitNothing(t, h.work)
		})
	}
}

// unattended is a spec whose guest gets its secret from a broker.
const unattended = `name = "vm"
memory = "384MiB"
cpus = 1
%s[firmware]
image = %q
[kernel]
image = %q
initrd = %q
cmdline = %q
[confidential]
technology = %q
[broker]
connect = "unix:broker.sock"
[latch]
timeout = %q
`

// firstBoot configures the guest, by files that stand before its initrd.
const firstBoot = "[config]\nuser-data = \"user-data\"\ncredentials = { token = \"token\" }\n"

// writeConfig writes what firstBoot names, and the owner's file with it.
func (h *host) writeConfig() {
	h.write("user-data", "#cloud-config\n")
	h.write("token", "a token")
	h.write("config.toml", firstBoot)
}

// TestUnattended: with a broker in the spec a VM starts by itself, whatever its technology, and the
// command ends once the guest has its secret, or is refused it.
func TestUnattended(t *testing.T) {
	t.Parallel()
	c := needCoco(t)
	for _, x := range []struct {
		technology, version, tables string
		tdx                         bool
	}{
		{"sev", "7.2", "[sev]\nchips = \"any\"\n", false},
		{"sev-es", "11.1", "[sev-es]\nchips = \"any\"\n", false},
		{"sev-snp", "10.0", snpTables, false},
		{"tdx", "11.1", tdxTables, true},
	} {
		t.Run(x.technology, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			g := guestLine{
				bios: filepath.Join(h.work, "OVMF.amdsev.fd"), kernel: c.kernel, initrd: c.initrd,
			}
			words := ""
			switch {
			case x.tdx:
				c.needTDXFirmware(t)
				g.bios, words = c.ovmf, "vmlatch.interface=configfs-tsm,rtmr"
			case x.technology != "sev-snp":
				g.kernel, g.initrd = filepath.Join(h.work, "vmlinuz"), filepath.Join(h.work, "initrd.img")
				words = "latch.source=injected vmlatch.secret=0x810000+0xc00"
			}
			b := h.newBroker(g.initrd)
			g.initrd, g.append, g.config = b.image, b.line(words), "config.toml"
			h.write("secret", brokerSecret)
			h.write("cmdline", g.append)
			h.writeConfig()
			h.ownersDesk(g.policyFor(x.tables) + releaseTable)
			qemu := qemus.Version(t, x.version)
			spec := func(line, timeout string) {
				cpu := "cpu = \"EPYC-Milan\"\n"
				if x.tdx {
					cpu = ""
				}
				text := fmt.Sprintf(unattended, cpu, g.bios, g.kernel, g.initrd, line, x.technology, timeout)
				h.write("vm.toml", "qemu = \""+qemu+"\"\n"+text+firstBoot)
			}
			spec(g.append, "2m")
			if x.technology == "sev" { // a broker that is away is waited for by SNP and TDX guests, and not here
				h.refused("start --emulate vm.toml", 1, "get a session of the broker")
			}
			b.serve()
			out, err := h.attempt(h.command("vmlatch", "start", "--emulate", "vm.toml"))
			if err != nil {
				logs, _ := h.attempt(h.command("vmlatch", "logs", "vm"))
				t.Fatalf("%v: %s\n%s", err, out, logs)
			}
			want := "its owner's broker accepted its evidence, and it has its secret"
			if x.technology == "sev" || x.technology == "sev-es" {
				want = "its owner's secret was accepted"
			}
			h.shows("start", out, want)
			h.run("vmlatch", "wait", "vm")
			logs := h.run("vmlatch", "logs", "vm")
			if !gotSecret.MatchString(logs) {
				t.Errorf("the guest's console: %s", logs)
			}
			h.shows("the guest's console", logs, "the first boot is configured by 3 measured files",
				"file /run/credentials/@initrd/token: mode 0600", "file /run/vmlatch/seed/meta-data: mode 0600",
				fmt.Sprintf("file /run/vmlatch/seed/user-data: mode 0600, sha256 %x",
					sha256.Sum256([]byte("#cloud-config\n"))))
			if n := len(b.audit()["release"]); n != 1 {
				t.Errorf("%d releases in the audit, want 1", n)
			}

			if x.technology == "sev-snp" { // the time is over before the guest has asked
				spec(g.append, "3s")
				h.refused("start --emulate vm.toml", 4, "has not accepted it within 3s")
			}
			if x.tdx { // a serial number, which nothing measures, and cloud-init would listen to
				h.write("qemu", "#!/bin/sh\nexec "+qemu+" \"$@\" -smbios 'type=1,serial=ds=nocloud;s=http://192.0.2.1/'\n")
				if err := os.Chmod(filepath.Join(h.work, "qemu"), 0o755); err != nil {
					t.Fatal(err)
				}
				honest := qemu
				qemu = filepath.Join(h.work, "qemu")
				spec(g.append, "2m")
				h.refused("start --emulate vm.toml", 4, "the guest ended before its broker accepted it")
				logs := h.run("vmlatch", "logs", "vm")
				h.shows("the guest's console", logs, "the machine's serial number tells cloud-init what to do: ds=",
					"and powers off")
				if strings.Contains(logs, "/run/vmlatch/seed") {
					t.Errorf("the guest is configured: %s", logs)
				}
				qemu = honest
				spec(g.append, "2m")
			}
			// The host changes what it can: the command line, or what configures the guest.
			if x.technology == "sev" || x.technology == "sev-snp" {
				spec(g.append+" quiet", "2m")
			} else {
				h.write("user-data", "#cloud-config\nruncmd: [the host's]\n")
			}
			h.refused("start --emulate vm.toml", 4, "measurement")
			h.run("vmlatch", "rm", "vm")
			b.stop()
			waitNothing(t, h.work)
		})
	}
}

// refused is a command that must fail with a code and a text.
func (h *host) refused(line string, code int, want string) {
	h.t.Helper()
	out, err := h.attempt(h.command("vmlatch", strings.Fields(line)...))
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code || !strings.Contains(out, want) {
		h.t.Errorf("vmlatch %s: %v: %s\nwant code %d and %q", line, err, out, code, want)
	}
}
