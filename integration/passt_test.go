package integration

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/integration/asked"
	"github.com/vmlatch/vmlatch/integration/qemus"
)

// TestPasst: a guest reaches the world by passt, and is reached by its forwarded ports; the host's
// loopback only if its spec says so. passt ends with QEMU, however that ends.
func TestPasst(t *testing.T) {
	t.Parallel()
	needProgram(t, "passt")
	n := newNetHost(t)
	n.serves("198.51.100.1:7000")
	n.serves("127.0.0.1:7001")
	const address = "vmlatch.net=192.0.2.1/24 vmlatch.gateway=192.0.2.254 vmlatch.serve=5000 "
	const asksOut = address + "vmlatch.connect=198.51.100.1:7000 vmlatch.connect=192.0.2.254:7001"
	n.start("a", qemus.Newest(t), "mode = \"passt\"\nforward = [\"tcp:127.0.0.1:2222:5000\"]", asksOut)
	n.start("b", qemus.Version(t, "10.0"), "mode = \"passt\"\nhost-loopback = true", asksOut)
	// 7.2 has the network, too; but without KVM its guests lose what is sent to them now and then.
	n.start("old", qemus.Version(t, "7.2"), "mode = \"passt\"", "")
	n.must("stop", "old", "--now")
	n.must("rm", "old")
	n.console("a", "198.51.100.1:7000 says hello from the host", "192.0.2.254:7001 says nothing")
	n.console("b", "198.51.100.1:7000 says hello from the host", "192.0.2.254:7001 says hello from the host")
	if said := n.asks("127.0.0.1:2222"); said != "hello from 192.0.2.1\n" {
		t.Errorf("the forwarded port says %q", said)
	}
	n.shows("plan", n.must("plan", "a.toml"), "passt --foreground", "--no-map-gw", "--tcp-ports 127.0.0.1/2222:5000")
	if out, err := exec.Command("pkill", "-f", "127.0.0.1/2222:5000").CombinedOutput(); err != nil {
		t.Fatalf("passt: %v: %s", err, out)
	}
	within(t, "that passt has gone is not said", func() bool {
		return strings.Contains(n.must("inspect", "a"), "network net0 has gone")
	})
	n.must("stop", "a", "b", "--now")
	n.must("rm", "a", "b")
	waitNothing(t, n.work)
}

// TestPasstNames: passt tells the guest of the name server behind the host's own, which listens on
// the host's loopback. The guest has a second interface, on a bridge, and uses both.
func TestPasstNames(t *testing.T) {
	t.Parallel()
	needProgram(t, "passt")
	n := newNetHost(t)
	ipxe := needIPXE(t)
	log := &asked.Log{}
	for _, at := range []string{"198.51.100.1:8000", "10.77.0.1:8000"} {
		n.here(func() error {
			l, err := net.Listen("tcp", at)
			if err == nil {
				t.Cleanup(func() { _ = l.Close() })
				go log.Serve(l)
			}
			return err
		})
	}
	const words = "dhcp net0 && imgfetch http://198.51.100.1:8000/${net0/dns} && ifopen net1 && " +
		"set net1/ip 10.77.0.2 && set net1/netmask 255.255.255.0 && imgfetch http://10.77.0.1:8000/second"
	n.write("vm.toml", fmt.Sprintf("qemu = %q\nmemory = \"64MiB\"\n[kernel]\nimage = %q\ncmdline = %q\n"+
		"[[network]]\nmode = \"passt\"\n[[network]]\nmode = \"bridge\"\nbridge = \"br0\"\nvhost = \"off\"\n",
		qemus.Newest(t), ipxe, words))
	start := n.command("vmlatch", "start", "vm.toml")
	n.write("resolv.conf", "nameserver 127.0.0.53\n")
	const resolved = `mount --bind resolv.conf "$(realpath /etc/resolv.conf)" && mount -t tmpfs none /run &&
		mkdir -p /run/systemd/resolve && echo "nameserver 192.0.2.53" > /run/systemd/resolve/resolv.conf && exec "$@"`
	start = wrapped(start, "ip", "netns", "exec", n.ns, "sh", "-c", resolved, "sh")
	if out, err := n.attempt(start); err != nil || strings.Contains(out, "network-names") {
		t.Fatalf("%v: %s", err, out)
	}
	within(t, "the guest does not ask", func() bool { return len(log.All()) == 2 })
	// passt asks from the host's own address.
	if want := []string{"198.51.100.1 /192.0.2.53", "10.77.0.2 /second"}; !slices.Equal(log.All(), want) {
		t.Errorf("the guest asked for %q, want %q", log.All(), want)
	}
	n.must("stop", "vm", "--now")
	n.must("rm", "vm")
	waitNothing(t, n.work)
}

// needIPXE is a guest that uses networks within a second, as its command line says.
func needIPXE(t *testing.T) string {
	t.Helper()
	ipxe := filepath.Join(top(), ".cache/root/boot/ipxe.lkrn")
	if _, err := os.Stat(ipxe); err != nil {
		t.Skip("the registry lacks ipxe")
	}
	return ipxe
}
