package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/integration/qemus"
)

// TestInHost runs the tests of package inhost, in a guest that is a host of its own: its root is
// this host's, and its kernel can do what this host's may not.
func TestInHost(t *testing.T) {
	t.Parallel()
	c := needCoco(t)
	if _, err := os.Stat("/usr/lib/qemu/virtiofsd"); err != nil || os.Getuid() != 0 {
		t.Skipf("virtiofsd needs root: %v", err)
	}
	h := newHost(t)
	tests := testsFor(t, "integration/inhost", "inhost")
	ipxe := needIPXE(t)
	initrd := h.initrdWith(
		"drivers/vhost/vhost_iotlb", "drivers/vhost/vhost", "drivers/net/tun", "drivers/net/tap",
		"drivers/vhost/vhost_net", "drivers/net/macvlan", "drivers/net/macvtap", "net/llc/llc", "net/802/stp",
		"net/bridge/bridge", "drivers/net/veth", "net/vmw_vsock/vsock",
		"net/vmw_vsock/vmw_vsock_virtio_transport_common", "drivers/vhost/vhost_vsock", "drivers/block/loop",
		"drivers/md/dm-mod", "drivers/scsi/scsi_common", "drivers/scsi/scsi_mod", "drivers/scsi/sd_mod",
		"drivers/scsi/scsi_debug",
	)
	// What runs often is read once.
	const script = `#!/bin/sh
set -e
mkdir -p /run/bin /run/qemu/usr/bin
cp %[1]s/vmlatch /run/bin
cd %[2]s
cp -a usr/lib* usr/share /run/qemu/usr
cp -a lib* /run/qemu 2>/dev/null || true
cp usr/bin/qemu-system-x86_64 /run/qemu/usr/bin
ln -s usr/bin /run/qemu/bin
mount --bind /run/qemu .
export INHOST_BIN=/run/bin INHOST_QEMU=%[2]s/bin/qemu-system-x86_64 INHOST_IPXE=%[3]s INHOST_POLICY=%[4]s
exec %[5]s -test.v -test.timeout=15m
`
	qemu := filepath.Join(filepath.Dir(qemus.Newest(t)), "..")
	h.write("run.sh", fmt.Sprintf(script, binaries, qemu, ipxe, h.appArmorPolicy(), tests))
	if err := os.Chmod(filepath.Join(h.work, "run.sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.write("vm.toml", fmt.Sprintf("qemu = %q\nmemory = \"1GiB\"\n[kernel]\nimage = %q\ninitrd = %q\n"+
		"cmdline = \"console=ttyS0 quiet panic=-1 no_timer_check lsm=landlock,apparmor vmlatch.modules"+
		" vmlatch.host=root vmlatch.run=%s\"\n[[share]]\npath = \"root\"\ntag = \"root\"\n",
		qemus.Newest(t), c.kernel, initrd, filepath.Join(h.work, "run.sh")))
	if err := os.Mkdir(filepath.Join(h.work, "root"), 0o755); err != nil {
		t.Fatal(err)
	}
	start := wrapped(h.command("vmlatch", "start", "vm.toml"), "unshare", "--mount", "sh", "-c",
		`mount --rbind / root && exec "$@"`, "sh") // virtiofsd cannot serve / itself
	if out, err := h.attempt(start); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	h.run("vmlatch", "wait", "vm")
	console := h.run("vmlatch", "logs", "vm")
	if !strings.Contains(console, "\nPASS") || strings.Contains(console, "--- FAIL") {
		t.Errorf("the guest's console: %s", console)
	}
	for _, line := range strings.Split(console, "\n") {
		if strings.HasPrefix(line, "--- ") {
			t.Log(line)
		}
	}
	h.run("vmlatch", "rm", "vm")
	waitNothing(t, h.work)
}
