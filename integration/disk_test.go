package integration

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/integration/qemus"
)

// diskGuest is a Debian on an encrypted disk.
type diskGuest struct{ disk, key, initrd string }

// needDiskGuest makes it, once. It needs root.
func needDiskGuest(t *testing.T) diskGuest {
	t.Helper()
	needCoco(t)
	qemus.Version(t, "11.1")
	needProgram(t, "mmdebstrap")
	if _, err := exec.LookPath("sudo"); os.Getuid() != 0 && err != nil {
		t.Skip("building a Debian in a directory needs root")
	}
	packages(t)
	if err := makeDiskGuest(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(top(), ".cache/guest/disk")
	return diskGuest{filepath.Join(dir, "root.img"), filepath.Join(dir, "key"), filepath.Join(dir, "initrd.img")}
}

var makeDiskGuest = sync.OnceValue(func() error {
	cmd := exec.Command("scripts/disk-guest")
	cmd.Dir = top()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("scripts/disk-guest: %w\n%s", err, out)
	}
	return nil
})

const applianceSpec = `name = "vm"
qemu = %q
memory = "768MiB"
cpus = 1
%s[firmware]
image = %q
[kernel]
image = %q
initrd = %q
cmdline = %q
[confidential]
technology = %q
%s[broker]
connect = "unix:broker.sock"
[latch]
timeout = "3m"
`

// appliance is the owner's desk and the host of a guest on an encrypted disk.
type appliance struct {
	*broker
	guest      guestLine
	technology string
	disk       diskGuest
	cpu        string
	diskless   bool
	more       string // of its spec
}

// newAppliance prepares both; more is appended to the release.
func newAppliance(t *testing.T, d diskGuest, technology, tables, words string) *appliance {
	t.Helper()
	c, h := needCoco(t), newHost(t)
	a := &appliance{technology: technology, disk: d, cpu: "cpu = \"EPYC-Milan\"\n"}
	a.guest = guestLine{bios: filepath.Join(h.work, "OVMF.amdsev.fd"), kernel: c.kernel, initrd: d.initrd}
	if technology == "tdx" {
		c.needTDXFirmware(t)
		a.guest.bios, a.cpu = c.ovmf, ""
	}
	a.broker = h.newBroker(c.initrd)
	a.guest.append = "console=ttyS0 quiet panic=-1 root=/dev/mapper/root " + a.pin +
		" latch.name=test-emulated latch.broker=port " + words
	h.write("cmdline", a.guest.append)
	copyDisk(t, d.disk, filepath.Join(h.work, "root.img"))
	copyDisk(t, d.key, filepath.Join(h.work, "secret"))
	a.policy(tables, "repeat")
	return a
}

// policy writes the owner's policy.
func (a *appliance) policy(tables, mode string) {
	a.t.Helper()
	header := strings.Fields(a.run("latchkey", "disk", "header", a.disk.disk))[0]
	a.ownersDesk(a.guest.policyFor(tables) + strings.Replace(releaseTable, "repeat", mode, 1) +
		"kind = \"luks\"\nluks-header = \"" + header + "\"\n")
}

// configure configures the guest, by files that stand before its initrd.
func (a *appliance) configure(tables string) {
	a.t.Helper()
	a.writeConfig()
	a.guest.config, a.more = "config.toml", firstBoot
	a.policy(tables, "repeat")
}

// start starts it as its host would, while a person at the console types.
func (a *appliance) start() (said, console string, err error) {
	a.t.Helper()
	disk := "[[disk]]\nimage = \"root.img\"\n"
	if a.diskless {
		disk = ""
	}
	a.write("vm.toml", fmt.Sprintf(applianceSpec, qemus.Version(a.t, "11.1"), a.cpu, a.guest.bios, a.guest.kernel,
		a.guest.initrd, a.guest.append, a.technology, disk)+a.more)
	stop := make(chan struct{})
	var typist sync.WaitGroup
	typist.Go(func() { a.types(stop) })
	said, err = a.attempt(a.command("vmlatch", "start", "--emulate", "vm.toml"))
	if err == nil {
		a.run("vmlatch", "wait", "vm")
	}
	close(stop)
	typist.Wait()
	console, _ = a.attempt(a.command("vmlatch", "logs", "vm"))
	return said, console, err
}

// typed is what a shell would answer.
const typed = "shell-says-42"

// types types what gets a shell, a prompt or a secret, until it is stopped.
func (a *appliance) types(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(300 * time.Millisecond):
		}
		sockets, _ := filepath.Glob(filepath.Join(a.work, "run/*/console.sock"))
		if len(sockets) == 0 {
			continue
		}
		conn, err := net.Dial("unix", sockets[0])
		if err != nil {
			continue
		}
		go func() { _, _ = io.Copy(io.Discard, conn) }() // QEMU drops what is not read
		for err == nil {
			select {
			case <-stop:
				err = io.EOF
			case <-time.After(300 * time.Millisecond):
				_, err = io.WriteString(conn, "\x03\n\npassword\necho shell-says-$((6*7)); cat /run/latchguest/*\n")
			}
		}
		_ = conn.Close()
	}
}

// shut checks that the guest got nothing, that no person came in, and what the console says.
func (a *appliance) shut(console, want, hint string) {
	a.t.Helper()
	if !strings.Contains(console, want) || !strings.Contains(console, hint) {
		a.t.Errorf("the console lacks %q and %q:\n%s", want, hint, console)
	}
	for _, bad := range []string{typed, "(initramfs)", "appliance: /", "open as /dev/mapper", "passphrase"} {
		if strings.Contains(console, bad) {
			a.t.Errorf("%q is on the console:\n%s", bad, console)
		}
	}
	a.stop()
	a.run("vmlatch", "rm", "vm")
	waitNothing(a.t, a.work)
}

// TestDiskOpens: a Debian whose root file system is encrypted starts unattended, with the key that
// its owner's broker releases. TestFromZero does so by SEV-SNP.
func TestDiskOpens(t *testing.T) {
	t.Parallel()
	d := needDiskGuest(t)
	for technology, x := range map[string]struct{ tables, words string }{
		"sev": {"[sev]\nchips = \"any\"\n", injectedWords},
		"tdx": {tdxTables, "latch.close=no"}, // Linux 6.12 cannot extend RTMR3
	} {
		t.Run(technology, func(t *testing.T) {
			t.Parallel()
			a := newAppliance(t, d, technology, x.tables, x.words)
			a.configure(x.tables)
			a.serve()
			said, console, err := a.start()
			if err != nil || !strings.Contains(console, "appliance: / is /dev/mapper/root, CRYPT-LUKS2") {
				t.Fatalf("%v: %s\nthe guest's console:\n%s", err, said, console)
			}
			a.shows("the console", console, "latchguest: the first boot is configured by 3 measured files")
			if n := len(a.audit()["release"]); n != 1 || strings.Contains(console, typed) {
				t.Errorf("%d releases in the audit, want 1; the console:\n%s", n, console)
			}
			a.stop()
			a.run("vmlatch", "rm", "vm")
			waitNothing(t, a.work)
		})
	}
}

const deniedMeasurement = "the broker denies the secret: measurement"

const injectedWords = "latch.source=injected vmlatch.secret=0x810000+0xc00"

// TestDiskStaysShut: in every other case the guest powers off and says what to do, however much a
// person at the console types.
func TestDiskStaysShut(t *testing.T) {
	t.Parallel()
	d := needDiskGuest(t)
	for name, c := range map[string]struct {
		technology string // "sev-snp" if left out
		change     func(*appliance)
		start      string // what the command says
		want, hint string // what the console says
	}{
		"another command line": {
			change: func(a *appliance) { a.guest.append += " x" },
			start:  "measurement", want: deniedMeasurement, hint: "what was launched is not what",
		},
		"another initrd": {
			technology: "tdx",
			change: func(a *appliance) {
				b, err := os.ReadFile(a.guest.initrd)
				if err != nil {
					a.t.Fatal(err)
				}
				a.guest.initrd = filepath.Join(a.work, "initrd")
				a.write("initrd", string(b)+strings.Repeat("\x00", 512))
			},
			start: "measurement", want: deniedMeasurement, hint: "what was launched is not what",
		},
		"another command line, before it runs": {
			technology: "sev",
			change:     func(a *appliance) { a.guest.append += " x" },
			start:      "measurement",
		},
		"a person denies it": {
			change: func(a *appliance) {
				a.policy(snpTables, "ask")
				a.stop()
				a.serve()
				denied := make(chan struct{})
				a.t.Cleanup(func() { <-denied })
				go func() { // once there is a request
					defer close(denied)
					for range 100 {
						time.Sleep(500 * time.Millisecond)
						deny := a.command("latchkey", "deny", "--state", "broker-state", "1")
						if _, err := a.attempt(deny); err == nil {
							return
						}
					}
				}()
			},
			start: "denied", want: "the broker denies the secret: denied", hint: "hint: ",
		},
		"a header without encryption": {
			change: func(a *appliance) { nullCipher(a.t, filepath.Join(a.work, "root.img")) },
			want:   "the disk's header is not the owner's", hint: "latchkey disk header IMAGE",
		},
		"no disk": {
			change: func(a *appliance) { a.diskless = true },
			want:   "the disk is missing", hint: "needs a [[disk]]",
		},
		"no broker": {
			change: func(a *appliance) { a.stop() },
			start:  "ended before its broker accepted it", want: "no answer in time",
			hint: "must run there (latchkey serve)",
		},
		"no evidence": {
			change: func(a *appliance) { // the owner's initrd as it is: nothing emulates the guest's side
				a.guest.initrd = strings.Replace(a.guest.initrd, "initrd.img", "initrd.plain", 1)
			},
			start: "ended before its broker accepted it", want: "this kernel gives no evidence",
			hint: "with the kernel's drivers",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tables, words := snpTables, ""
			switch c.technology {
			case "":
				c.technology = "sev-snp"
			case "tdx":
				tables, words = tdxTables, "latch.close=no"
			case "sev":
				tables, words = "[sev]\nchips = \"any\"\n", injectedWords
			}
			a := newAppliance(t, d, c.technology, tables, words)
			a.serve()
			c.change(a)
			said, console, err := a.start()
			if c.start != "" && err == nil || !strings.Contains(said, c.start) {
				t.Errorf("%v: %s\nwant %q", err, said, c.start)
			}
			a.shut(console, c.want, c.hint)
		})
	}
}

// nullCipher edits a disk's header as a host can, with its checksums: the volume would be opened by
// the owner's key, and its data would be what the host has put there (CVE-2025-59054).
func nullCipher(t *testing.T, image string) {
	t.Helper()
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size, sum = 16 << 10, 448 // of a header, and where its checksum is (LUKS2 On-Disk Format, 2.1)
	for _, at := range []int64{0, size} {
		b := make([]byte, size)
		if _, err := f.ReadAt(b, at); err != nil {
			t.Fatal(err)
		}
		json := bytes.Index(b, []byte(`"encryption":"aes-xts-plain64","sector_size"`))
		if json < 0 {
			t.Fatalf("no cipher in %q", bytes.TrimRight(b[4096:], "\x00"))
		}
		copy(b[json:], `"encryption":"cipher_null-ecb"`)
		clear(b[sum : sum+64])
		digest := sha256.Sum256(b)
		copy(b[sum:], digest[:])
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
}

// copyDisk copies a disk image, without its holes.
func copyDisk(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "--sparse=always", "--reflink=auto", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
