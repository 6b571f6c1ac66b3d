package integration

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/integration/qemus"
)

// documented are the commands of a section of a document, and the files that it describes, by name.
func documented(t *testing.T, doc, heading string) (commands []string, files map[string]string) {
	t.Helper()
	text := read(t, filepath.Join(top(), doc))
	_, section, found := strings.Cut(text, "\n## "+heading+"\n")
	if !found {
		t.Fatalf("%s has no section %q", doc, heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	named := regexp.MustCompile("in a file `([^`]+)`:$")
	files = map[string]string{}
	name := "" // of the file that a text describes
	for line := range strings.SplitSeq(section, "\n") {
		code, indented := strings.CutPrefix(line, "    ")
		command, prompted := strings.CutPrefix(code, "$ ")
		switch {
		case prompted && indented:
			commands, name = append(commands, command), ""
		case indented && name == "" && len(commands) > 0: // a command goes on
			commands[len(commands)-1] += "\n" + code
		case name != "" && (indented || line == ""):
			files[name] += code + "\n"
		case line != "":
			name = ""
			if m := named.FindStringSubmatch(line); m != nil {
				name = m[1]
			}
		}
	}
	return commands, files
}

// zero is a directory that a Debian comes to life in.
type zero struct {
	*host
	dir       string // it has nothing else in it
	key, port string
	env       []string
}

func newZero(t *testing.T) *zero {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("an image holds root's files")
	}
	needProgram(t, "mmdebstrap", "ssh", "ssh-keygen")
	z := &zero{host: newHost(t)}
	z.dir = filepath.Join(z.work, "zero")
	if err := os.Mkdir(z.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	home := filepath.Join(z.work, "home")
	z.key = filepath.Join(home, ".ssh/id_ed25519")
	if err := os.MkdirAll(filepath.Dir(z.key), 0o700); err != nil {
		t.Fatal(err)
	}
	keygen := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", z.key)
	if out, err := keygen.CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v: %s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, z.port, _ = net.SplitHostPort(l.Addr().String())
	_ = l.Close()
	// The system's own mirror, and what the confidential guest needs besides.
	wrapper := filepath.Join(z.work, "bin")
	if err := os.Mkdir(wrapper, 0o755); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/bash\n. " + filepath.Join(top(), "scripts/packages.sh") + "\n" +
		`uri=$(mirrors | awk '$1 ~ /\/debian\/?$/ {print $1; exit}')` + "\n" +
		`exec /usr/bin/mmdebstrap --quiet --include=cryptsetup-bin,dmsetup` +
		` --dpkgopt='path-exclude=/usr/share/locale/*'` +
		` --dpkgopt='path-exclude=/usr/share/man/*' "$@"` +
		` "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri trixie main"` + "\n"
	if err := os.WriteFile(filepath.Join(wrapper, "mmdebstrap"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, v := range z.host.env {
		if path, ok := strings.CutPrefix(v, "PATH="); ok {
			v = "PATH=" + wrapper + ":" + z.bin + ":" + path
		}
		if !strings.HasPrefix(v, "HOME=") {
			z.env = append(z.env, v)
		}
	}
	z.env = append(z.env, "HOME="+home)
	return z
}

// sh runs a command as a person would.
func (z *zero) sh(line string) string {
	z.t.Helper()
	cmd := exec.Command("sh", "-c", strings.ReplaceAll(line, "2222", z.port))
	cmd.Env, cmd.Dir = z.env, z.dir
	out, err := z.attempt(cmd)
	if err != nil {
		z.t.Fatalf("%s: %v: %s", line, err, out)
	}
	return out
}

// ssh runs a command in a guest that boots.
func (z *zero) ssh(name, line string) (said string) {
	z.t.Helper()
	var err error
	for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); time.Sleep(2 * time.Second) {
		// ssh looks for root's own files, whatever HOME is.
		cmd := exec.Command(
			"timeout",
			"90",
			"vmlatch",
			"ssh",
			"root@"+name,
			"--",
			"-i",
			z.key,
			"-o",
			"BatchMode=yes",
			"-o",
			"UserKnownHostsFile="+filepath.Join(z.work, "known_hosts"),
			"-o",
			"StrictHostKeyChecking=accept-new",
			line,
		)
		cmd.Path, cmd.Env, cmd.Dir = "/usr/bin/timeout", z.env, z.work
		var out []byte
		if out, err = cmd.Output(); err == nil {
			return string(out)
		}
		said = string(out)
	}
	logs, _ := z.attempt(z.command("vmlatch", "logs", name))
	z.t.Fatalf("ssh: %v: %s\n%s", err, said, logs)
	return ""
}

// TestFromZero: the commands of the documentation, ten at the most, lead from an empty directory to
// a Debian with ssh. The same Debian on an encrypted disk then runs as a confidential guest, which
// the measured configuration lets its owner log in to.
func TestFromZero(t *testing.T) {
	t.Parallel()
	z := newZero(t)
	commands, files := documented(t, "docs/plain-vms.md", "From an empty directory to ssh")
	if len(commands) < 5 || len(commands) > 10 || len(files) != 1 {
		t.Fatalf("%d commands and %d files, want at most 10 and 1: %q", len(commands), len(files), commands)
	}
	for name, text := range files {
		z.write(filepath.Join("zero", name), strings.ReplaceAll(text, "2222", z.port))
	}
	for _, c := range commands {
		switch {
		case strings.HasPrefix(c, "apt-get "): // has been done
		case strings.HasPrefix(c, "vmlatch ssh "):
			said := z.ssh(
				strings.TrimPrefix(c, "vmlatch ssh root@"),
				"cloud-init status --wait --long; hostname; df --output=size -h / | tail -1",
			)
			z.shows("ssh", said, "status: done", "DataSourceNoCloud", "\ndeb\n", "3.9G")
		default:
			z.sh(c)
		}
	}
	z.sh("vmlatch stop deb && vmlatch rm deb")
	t.Run("confidential", func(t *testing.T) { z.t = t; z.confidential(t) })
}

// inRoot is how the owner prepares the image of a confidential guest. What emulates the platform
// needs modules.
const inRoot = `set -e
cp %s root/latchguest.deb
chroot root dpkg -i /latchguest.deb
rm root/latchguest.deb
sed -i 's,^device=.*,device=/dev/vda,; s,^timeout=.*,timeout=1m,' root/etc/latchguest.conf
cp root/usr/share/doc/latchguest/cloud.cfg.d/50-latchguest.cfg root/etc/cloud/cloud.cfg.d/
printf '%%s\n' configfs cuse >>root/etc/initramfs-tools/modules
chroot root update-initramfs -u -k all
cp root/vmlinuz vmlinuz
cat root/initrd.img >initrd.img
truncate -s %%512 initrd.img
cat %s >>initrd.img
rm debian.raw
truncate -s 0 plain.img
truncate -s 640M plain.img
mke2fs -q -t ext4 -d root plain.img
head -c 64 /dev/urandom | base64 -w0 >disk.key
rm -rf root
`

func (z *zero) confidential(t *testing.T) {
	d := needDiskGuest(t)
	debs, err := filepath.Glob(filepath.Join(top(), ".cache/deb/latchguest_*.deb"))
	if err != nil || len(debs) != 1 {
		t.Fatalf("packages %v, %v", debs, err)
	}
	z.sh(fmt.Sprintf(inRoot, debs[0], filepath.Join(filepath.Dir(d.disk), "swtee.cpio")))
	encrypt := exec.Command("go", "run", "./integration/guest/encrypt", filepath.Join(z.dir, "plain.img"),
		filepath.Join(z.dir, "encrypted.img"), filepath.Join(z.dir, "disk.key"))
	encrypt.Dir = top()
	if out, err := encrypt.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	z.sh("rm plain.img")
	a := newAppliance(t, diskGuest{
		disk: filepath.Join(z.dir, "encrypted.img"), key: filepath.Join(z.dir, "disk.key"),
		initrd: filepath.Join(z.dir, "initrd.img"),
	}, "sev-snp", snpTables, "rw ds=nocloud;s=file:///run/vmlatch/seed/")
	a.guest.kernel = filepath.Join(z.dir, "vmlinuz")
	a.configure(snpTables)
	a.write("user-data", read(t, filepath.Join(z.dir, "user-data")))
	a.serve()
	a.write("vm.toml", fmt.Sprintf(applianceSpec, qemus.Version(t, "11.1"), a.cpu, a.guest.bios, a.guest.kernel,
		a.guest.initrd, a.guest.append, a.technology, "[[disk]]\nimage = \"root.img\"\n")+firstBoot+
		"[[network]]\nmode = \"user\"\nforward = [\"tcp:127.0.0.1:"+z.port+":22\"]\n")
	if out, err := a.attempt(a.command("vmlatch", "start", "--emulate", "vm.toml")); err != nil {
		logs, _ := a.attempt(a.command("vmlatch", "logs", "vm"))
		t.Fatalf("%v: %s\n%s", err, out, logs)
	}
	inside := *z
	inside.host, inside.env = a.host, append(a.env, "PATH="+a.bin+":"+os.Getenv("PATH"))
	said := inside.ssh("vm", "cloud-init status --wait --long; cat /run/credentials/@system/token; echo;"+
		" findmnt -no SOURCE /")
	a.shows("ssh", said, "status: done", "file:///run/vmlatch/seed", "\na token\n", "/dev/mapper/root")
	if n := len(a.audit()["release"]); n != 1 {
		t.Errorf("%d releases in the audit, want 1", n)
	}
	a.run("vmlatch", "stop", "vm", "--now")
	a.run("vmlatch", "rm", "vm")
	a.stop()
	waitNothing(t, a.work)
}
