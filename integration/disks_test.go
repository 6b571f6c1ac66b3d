package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/integration/qemus"
)

// io has QEMU read or write a VM's disk as its guest would, and returns what went wrong. Older
// QEMUs write that to their log.
func (h *host) io(vm, device, command string) string {
	h.t.Helper()
	said := h.run("vmlatch", "qmp", vm, "human-monitor-command",
		fmt.Sprintf(`{"command-line": "qemu-io -d %s \"%s\""}`, device, command))
	for _, line := range strings.Split(h.run("vmlatch", "logs", vm, "--kind", "qemu"), "\n") {
		if strings.Contains(line, "failed") {
			said += line
		}
	}
	return strings.Trim(said, "\"\n")
}

// virtioDisk is the device of a virtio disk, as QEMU's own tree names it.
func virtioDisk(n int) string { return fmt.Sprintf("/machine/peripheral/dev-disk%d/virtio-backend", n) }

// TestDisks: every kind of disk works on every QEMU, with images that QEMU gets as descriptors;
// what is written to an ephemeral one is gone, and no other file is touched.
func TestDisks(t *testing.T) {
	t.Parallel()
	needProgram(t, "qemu-img")
	h := newHost(t)
	qemus.Each(t, "7.2", func(t *testing.T, qemu string) {
		h.t = t
		for _, name := range strings.Fields("plain.img base.img direct.img ring.img scsi.img nvme.img cd.iso") {
			h.write(name, strings.Repeat("\x00", 1<<20))
		}
		_ = os.Remove(filepath.Join(h.work, "over.qcow2"))
		h.run("vmlatch", "disk", "create", "over.qcow2", "--backing", "base.img")
		h.write("vm.toml", "qemu = \""+qemu+`"
[[disk]]
image = "plain.img"
serial = "first"
boot = 2
iothread = true
[[disk]]
image = "base.img"
ephemeral = true
[[disk]]
image = "over.qcow2"
backing = "base.img"
boot = 1
[[disk]]
image = "direct.img"
cache = "none"
aio = "native"
[[disk]]
image = "ring.img"
aio = "threads"
cache = "unsafe"
discard = "ignore"
[[disk]]
image = "scsi.img"
bus = "scsi"
[[disk]]
image = "nvme.img"
bus = "nvme"
[[disk]]
image = "cd.iso"
bus = "cdrom"
`)
		h.run("vmlatch", "start", "--hold", "vm.toml")
		defer h.run("vmlatch", "rm", "vm")
		h.shows("inspect", h.run("vmlatch", "inspect", "vm"), "base.img (raw, virtio, changes are dropped)",
			"over.qcow2 (qcow2, virtio)", "scsi.img (raw, scsi)", "cd.iso (raw, cdrom, read-only)")
		h.shows("ps", h.run("vmlatch", "ps", "--wide"), "plain.img, base.img, over.qcow2, direct.img")
		for _, device := range []string{
			virtioDisk(0), virtioDisk(1), virtioDisk(2), virtioDisk(3), virtioDisk(4), "dev-disk5", "dev-disk6",
		} {
			for _, command := range []string{"write -P 0x55 0 4096", "read -P 0x55 0 4096", "flush"} {
				if said := h.io("vm", device, command); said != "" {
					t.Errorf("%s: %s: %s", device, command, said)
				}
			}
		}
		h.io("vm", "dev-disk7", "write -P 0x55 0 4096")
		for _, image := range []string{"plain.img", "over.qcow2"} {
			h.write("twin.toml", "[[disk]]\nimage = \""+image+"\"\n[[disk]]\nimage = \"cd.iso\"\n")
			out, err := h.attempt(h.command("vmlatch", "check", "twin.toml"))
			if err == nil || !strings.Contains(out, "disks-free") || !strings.Contains(out, image) {
				t.Errorf("a second VM on %s: %v: %s", image, err, out)
			}
		}
		h.run("vmlatch", "stop", "vm", "--now")
		for name, want := range map[string]byte{
			"plain.img": 0x55, "base.img": 0, "direct.img": 0x55, "ring.img": 0x55, "scsi.img": 0x55, "nvme.img": 0x55,
			"cd.iso": 0,
		} {
			b, err := os.ReadFile(filepath.Join(h.work, name))
			if err != nil || !bytes.Equal(b[:4096], bytes.Repeat([]byte{want}, 4096)) {
				t.Errorf("%s begins with %x, want %x; %v", name, b[:1], want, err)
			}
		}
		out, err := exec.Command("qemu-img", "check", filepath.Join(h.work, "over.qcow2")).CombinedOutput()
		if err != nil {
			t.Errorf("the overlay: %v: %s", err, out)
		}
		if list, _ := filepath.Glob(filepath.Join(h.work, "state/vm/.*")); list != nil {
			t.Errorf("%v are left", list)
		}
	})
	waitNothing(t, h.work)
}

// TestDiskInUse: of two VMs that start at once on one image, one says whose it is, by its path.
func TestDiskInUse(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.write("d.img", strings.Repeat("\x00", 1<<20))
	h.write("one.toml", "[[disk]]\nimage = \"d.img\"\n")
	h.write("two.toml", "[[disk]]\nimage = \"d.img\"\nephemeral = true\n")
	h.run("vmlatch", "start", "--hold", "one.toml")
	out, err := h.attempt(h.command("vmlatch", "start", "--hold", "two.toml"))
	if err == nil || !strings.Contains(out, filepath.Join(h.work, "d.img")) || strings.Contains(out, "fdset") {
		t.Errorf("a base that another VM writes: %v: %s", err, out)
	}
	h.run("vmlatch", "stop", "one", "--now")
	h.run("vmlatch", "start", "--hold", "two.toml")
	h.write("three.toml", "[[disk]]\nimage = \"d.img\"\nephemeral = true\n")
	h.run("vmlatch", "start", "--hold", "three.toml") // a base that no VM writes is for many
	h.run("vmlatch", "stop", "--all", "--now")
	h.run("vmlatch", "rm", "--all")
	waitNothing(t, h.work)
}

// TestNoDisk: what cannot be a disk is refused, at once, by its path.
func TestNoDisk(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	if err := exec.Command("mkfifo", filepath.Join(h.work, "fifo")).Run(); err != nil {
		t.Fatal(err)
	}
	for image, want := range map[string]string{
		"fifo": "neither a regular file", "/dev/null": "neither a regular file", "missing": "missing",
		".": "directory",
	} {
		h.write("vm.toml", "[[disk]]\nimage = \""+image+"\"\nformat = \"raw\"\n")
		out, err := h.attempt(h.command("vmlatch", "start", "vm.toml"))
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v: %s, want %q", image, err, out, want)
		}
	}
	waitNothing(t, h.work)
}

// TestDiskFull: a guest whose disk finds no room on its host is paused, which is said, and goes on
// once there is room.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	needProgram(t, "qemu-img")
	c := needCoco(t)
	h := newHost(t)
	small := filepath.Join(h.work, "small")
	if err := os.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	mount := func(options string) error {
		return exec.Command("mount", "-t", "tmpfs", "-o", options, "tmpfs", small).Run()
	}
	if err := mount("size=6m"); err != nil {
		t.Skipf("no small file system can be made: %v", err)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", small).Run() })
	h.run("vmlatch", "disk", "create", "small/d.qcow2", "16MiB")
	h.write("vm.toml", fmt.Sprintf("qemu = %q\n[kernel]\nimage = %q\ninitrd = %q\ncmdline = \"console=ttyS0 quiet"+
		" panic=-1 no_timer_check vmlatch.modules vmlatch.fill=vda\"\n[[disk]]\nimage = \"small/d.qcow2\"\n",
		qemus.Newest(t), c.kernel, h.initrdWith("drivers/block/virtio_blk")))
	h.run("vmlatch", "start", "vm.toml")
	said := ""
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if said = h.run("vmlatch", "ps"); strings.Contains(said, "no room") {
			break
		}
	}
	h.shows("ps", said, "paused (the host has no room left for ")
	h.shows("inspect", h.run("vmlatch", "inspect", "vm"), "small/d.qcow2; make room, then")
	if err := mount("remount,size=64m"); err != nil {
		t.Fatal(err)
	}
	h.run("vmlatch", "resume", "vm")
	h.run("vmlatch", "wait", "vm")
	h.shows("the console", h.run("vmlatch", "logs", "vm"), "disk vda: full after 16384 KiB")
	h.run("vmlatch", "rm", "vm")
	waitNothing(t, h.work)
}

// TestForgedHeaders: what a guest writes into its disk makes no command touch other files.
func TestForgedHeaders(t *testing.T) {
	t.Parallel()
	needProgram(t, "qemu-img")
	h := newHost(t)
	h.write("victim", strings.Repeat("v", 1<<20))
	for _, args := range [][]string{
		{"create", "-q", "-f", "qcow2", "-o", "data_file=victim", "forged.raw", "1M"},
		{"create", "-q", "-f", "qcow2", "-u", "-b", "victim", "-F", "raw", "overlay.qcow2", "1M"},
		{"create", "-q", "-f", "qcow2", "-o", "data_file=victim", "forged.qcow2", "1M"},
	} {
		cmd := exec.Command("qemu-img", args...)
		cmd.Dir = h.work
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	h.write("victim", strings.Repeat("v", 1<<20)) // qemu-img has opened it
	for want, args := range map[string][]string{
		"its content is qcow2, and by its name it is raw": {"disk", "resize", "forged.raw", "20MiB"},
		"its data is in another file":                     {"disk", "resize", "forged.qcow2", "20MiB"},
		"by its name it is raw":                           {"disk", "create", "x.qcow2", "--backing", "forged.raw"},
		"its data is in":                                  {"disk", "create", "y.qcow2", "--backing", "forged.qcow2"},
	} {
		if out, err := h.attempt(h.command("vmlatch", args...)); err == nil || !strings.Contains(out, want) {
			t.Errorf("vmlatch %v: %v: %s, want %q", args, err, out, want)
		}
	}
	h.run("vmlatch", "disk", "resize", "forged.raw", "4MiB", "--format", "raw")
	h.run("vmlatch", "disk", "resize", "overlay.qcow2", "2MiB")
	h.run("vmlatch", "disk", "resize", "overlay.qcow2", "1MiB", "--shrink")
	out, err := h.attempt(h.command("vmlatch", "disk", "resize", "forged.raw", "1MiB", "--format", "raw"))
	if err == nil || !strings.Contains(out, "would be lost") {
		t.Errorf("shrunk without a word: %v: %s", err, out)
	}
	if got := read(t, filepath.Join(h.work, "victim")); got != strings.Repeat("v", 1<<20) {
		t.Errorf("the other file has %d bytes", len(got))
	}
}
