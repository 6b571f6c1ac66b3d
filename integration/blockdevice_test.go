package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/integration/qemus"
)

// TestBlockDevice: a disk may be a block device, on every QEMU.
func TestBlockDevice(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "-f", "--show", file).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device can be made: %s", strings.TrimSpace(string(out)))
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", device).Run() })
	h := newHost(t)
	qemus.Each(t, "7.2", func(t *testing.T, qemu string) {
		h.t = t
		h.write("loop.toml", "qemu = \""+qemu+"\"\n[[disk]]\nimage = \""+device+"\"\n")
		h.run("vmlatch", "start", "loop.toml")
		defer h.run("vmlatch", "stop", "loop", "--now")
		h.shows(
			"query-block",
			h.run("vmlatch", "qmp", "loop", "query-named-block-nodes"),
			`"host_device"`,
			"/dev/fdset/",
		)
		for _, command := range []string{"write -P 0x55 0 4096", "read -P 0x55 0 4096"} {
			if said := h.io("loop", virtioDisk(0), command); said != "" {
				t.Errorf("%s: %s", command, said)
			}
		}
		h.shows("inspect", h.run("vmlatch", "inspect", "loop"), device)
		out, err := h.attempt(h.command("vmlatch", "check", "loop.toml", "--name", "twin"))
		if err == nil {
			t.Errorf("a second VM on the device: %s, want it refused", out)
		}
		h.shows("check", out, "disks-free")
	})
}
