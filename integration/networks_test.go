package integration

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/integration/qemus"
)

// netHost is a host in a network of its own, with a bridge and an interface that leads nowhere.
type netHost struct {
	*host
	ns             string
	kernel, initrd string
	others         string // directory of what stands for files of the host's, for withHelper; "" for none
}

// withHelper runs a command with what a directory has: another helper, another /etc, and a device
// that everybody may open, as is usual.
const withHelper = `mount --bind "$0/etc" /etc && mount --bind "$0/helper" ` + helperPath +
	` && mount --bind "$0/tun" /dev/net/tun && exec "$@"`

const helperPath = "/usr/lib/qemu/qemu-bridge-helper"

// inNetwork makes the network: 192.0.2.1 is the host's address outside, which passt gives the guest
// too, 198.51.100.1 is on the same interface, 10.77.0.1 and fd77::1 the bridge's.
const inNetwork = `set -e
ip netns add $1
run() { ip netns exec $1 "$@"; }
ip -n $1 link set lo up
ip -n $1 link add ext type veth peer name beyond
ip -n $1 link set beyond up
ip -n $1 addr add 192.0.2.1/24 dev ext
ip -n $1 addr add 198.51.100.1/32 dev ext
ip -n $1 link set ext up
ip -n $1 route add default via 192.0.2.254
ip -n $1 link add br0 type bridge
ip -n $1 addr add 10.77.0.1/24 dev br0
ip netns exec $1 sh -c 'echo 0 > /proc/sys/net/ipv6/conf/br0/accept_dad' || :
ip -n $1 addr add fd77::1/64 dev br0 nodad
ip -n $1 link set br0 up
`

func newNetHost(t *testing.T) *netHost {
	t.Helper()
	return newNetHostOf(t, 0)
}

// newNetHostOf is one whose commands another user runs.
func newNetHostOf(t *testing.T, uid int) *netHost {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("networks need root")
	}
	c := needCoco(t)
	n := &netHost{
		host:   newHostOf(t, uid),
		ns:     fmt.Sprintf("vmlatch-%d-%d", os.Getpid(), time.Now().UnixNano()%1e6),
		kernel: c.kernel,
	}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", n.ns).Run() })
	if out, err := exec.Command("sh", "-c", inNetwork, "sh", n.ns).CombinedOutput(); err != nil {
		t.Skipf("no network can be made: %v: %s", err, out)
	}
	n.initrd = n.initrdWith("net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net")
	if uid != 0 { // who may have no access to this checkout
		n.write("vmlinuz", read(t, n.kernel))
		n.kernel = filepath.Join(n.work, "vmlinuz")
		n.own(n.initrd)
	}
	return n
}

// initrdWith is an initrd of the test guest with modules of its kernel, which it loads if its
// command line has vmlatch.modules.
func (h *host) initrdWith(modules ...string) string {
	h.t.Helper()
	release := strings.TrimSpace(read(h.t, filepath.Join(top(), ".cache/guest/coco/release")))
	out := filepath.Join(h.work, "initrd-modules")
	args := []string{"run", "./integration/guest/mkinitrd", filepath.Join(top(), ".cache/guest/init"), out}
	for _, m := range modules {
		args = append(args, filepath.Join(top(), ".cache/root/lib/modules", release, "kernel", m+".ko.xz"))
	}
	cmd := exec.Command("go", args...)
	cmd.Dir = top()
	if said, err := cmd.CombinedOutput(); err != nil {
		h.t.Fatalf("%v: %s", err, said)
	}
	return out
}

// inside runs vmlatch in the network.
func (n *netHost) inside(args ...string) (string, error) {
	cmd := n.command("vmlatch", args...)
	line := []string{"ip", "netns", "exec", n.ns}
	if n.others != "" {
		line = append(line, "sh", "-c", withHelper, n.others, "setpriv", "--clear-groups",
			fmt.Sprint("--reuid=", n.uid), fmt.Sprint("--regid=", n.uid))
	}
	cmd.Args = append(append(line, cmd.Path), cmd.Args[1:]...)
	cmd.Path, _ = exec.LookPath("ip")
	cmd.SysProcAttr = nil
	return n.attempt(cmd)
}

func (n *netHost) must(args ...string) string {
	n.t.Helper()
	out, err := n.inside(args...)
	if err != nil {
		n.t.Fatalf("vmlatch %v: %v: %s", args, err, out)
	}
	return out
}

// here runs something in the network, in this process.
func (n *netHost) here(do func() error) {
	n.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		f, err := os.Open("/run/netns/" + n.ns)
		if err == nil {
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
			_ = f.Close()
		}
		if err == nil {
			err = do()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		n.t.Fatal(err)
	}
}

// serves greets who connects to an address of the host.
func (n *netHost) serves(at string) {
	n.t.Helper()
	n.here(func() error {
		l, err := net.Listen("tcp", at)
		if err != nil {
			return err
		}
		n.t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = c.Read(make([]byte, 64))
				_, _ = io.WriteString(c, "hello from the host\n")
				_ = c.Close()
			}
		}()
		return nil
	})
}

// asks connects to an address from the host.
func (n *netHost) asks(to string) (said string) {
	n.t.Helper()
	n.here(func() error {
		var last error
		for end := time.Now().Add(90 * time.Second); time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
			c, err := net.DialTimeout("tcp", to, 2*time.Second)
			if err != nil {
				last = err
				continue
			}
			_ = c.SetDeadline(time.Now().Add(3 * time.Second))
			_, _ = io.WriteString(c, "hello\n") // passt before 2024-05 lets a server speak only after its client has
			b, err := io.ReadAll(io.LimitReader(c, 100))
			_ = c.Close()
			if said = string(b); err == nil && said != "" {
				return nil
			}
			last = err
		}
		return fmt.Errorf("%s: %w", to, last)
	})
	return said
}

// start starts a VM with a network, and a kernel that does what the words say.
func (n *netHost) start(name, qemu, network, words string) {
	n.t.Helper()
	n.write(name+".toml", fmt.Sprintf("qemu = %q\nmemory = \"192MiB\"\n[kernel]\nimage = %q\ninitrd = %q\n"+
		"cmdline = \"console=ttyS0 quiet panic=-1 no_timer_check vmlatch.modules vmlatch.stay %s\"\n[[network]]\n%s\n",
		qemu, n.kernel, n.initrd, words, network))
	n.must("start", name+".toml")
}

// console waits until a VM's console says something.
func (n *netHost) console(name string, wants ...string) {
	n.t.Helper()
	said := ""
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		said = n.must("logs", name)
		missing := false
		for _, w := range wants {
			missing = missing || !strings.Contains(said, w)
		}
		if !missing {
			return
		}
	}
	n.t.Errorf("%s: the console lacks one of %q:\n%s", name, wants, said)
}

// TestBridge: two VMs on a bridge reach each other and the host, by IPv4 and IPv6; the interfaces
// are gone with them.
func TestBridge(t *testing.T) {
	t.Parallel()
	n := newNetHost(t)
	qemu := qemus.Newest(t)
	const bridge = "mode = \"bridge\"\nbridge = \"br0\"\nvhost = \"off\""
	n.start("a", qemu, bridge, "vmlatch.net=10.77.0.2/24 vmlatch.net=fd77::2/64 vmlatch.serve=5000")
	n.start("b", qemu, bridge, "vmlatch.net=10.77.0.3/24 vmlatch.net=fd77::3/64 vmlatch.connect=10.77.0.2:5000"+
		" vmlatch.connect=[fd77::2]:5000")
	n.console("b", "10.77.0.2:5000 says hello from 10.77.0.2", "[fd77::2]:5000 says hello from fd77::2")
	if said := n.asks("10.77.0.2:5000"); said != "hello from 10.77.0.2\n" {
		t.Errorf("the host hears %q", said)
	}
	n.shows("inspect", n.must("inspect", "a"), "bridge br0, MAC 52:")
	n.must("stop", "a", "b", "--now")
	within(t, "interfaces are left on the bridge", func() bool { // not at once: see tuntap.letGo
		out, err := exec.Command("ip", "-n", n.ns, "-o", "link", "show", "master", "br0").CombinedOutput()
		return err == nil && len(out) == 0
	})
	n.must("rm", "a", "b")
	for network, want := range map[string]string{
		"mode = \"bridge\"\nbridge = \"br1\"":                 "bridge br1: there is no such bridge",
		"mode = \"bridge\"\nbridge = \"ext\"":                 "bridge ext: there is no such bridge",
		"mode = \"tap\"\ninterface = \"ext\"":                 "tap ext: there is no such interface",
		"mode = \"macvtap\"\ninterface = \"ext\"":             "macvtap ext: there is no such interface",
		"mode = \"bridge\"\nbridge = \"br0\"\nvhost = \"on\"": "/dev/vhost-net",
	} {
		if strings.Contains(network, "vhost") {
			if _, err := os.Stat("/dev/vhost-net"); err == nil {
				continue
			}
		}
		n.write("vm.toml", "[[network]]\n"+network+"\n")
		if out, err := n.inside("start", "vm.toml"); err == nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v: %s, want %q", network, err, out, want)
		}
	}
	waitNothing(t, n.work)
}

// TestBridgeHelper: a user without rights gets an interface on a bridge from QEMU's own helper, if
// root lets it.
func TestBridgeHelper(t *testing.T) {
	t.Parallel()
	const user = 64031
	if _, err := os.Stat(helperPath); err != nil {
		t.Skip("this host has no qemu-bridge-helper")
	}
	n := newNetHostOf(t, user)
	n.others = t.TempDir() // root's
	copies := `cp -a /etc "$0/etc" && cp ` + helperPath + ` "$0/helper" && mknod -m 666 "$0/tun" c 10 200`
	if out, err := exec.Command("sh", "-c", copies, n.others).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const bridge = "mode = \"bridge\"\nbridge = \"br0\"\nvhost = \"off\""
	n.write("vm.toml", "[[network]]\n"+bridge+"\n")
	out, err := n.inside("start", "vm.toml")
	if err == nil || !strings.Contains(out, "this user has no right to it") || !strings.Contains(out, "chmod u+s") {
		t.Errorf("without a helper that is root's to run: %v: %s", err, out)
	}
	if err := os.Chmod(filepath.Join(n.others, "helper"), 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	n.shows("plan", n.must("plan", "vm.toml"), "made by "+helperPath)
	if out, err := n.inside("start", "vm.toml"); err == nil || !strings.Contains(out, "/etc/qemu/bridge.conf") {
		t.Errorf("a helper that is told nothing: %v: %s", err, out)
	}
	conf := filepath.Join(n.others, "etc/qemu/bridge.conf")
	if err := os.MkdirAll(filepath.Dir(conf), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(conf, []byte("allow br0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	n.start("a", qemus.Newest(t), bridge, "vmlatch.net=10.77.0.2/24 vmlatch.serve=5000")
	if said := n.asks("10.77.0.2:5000"); said != "hello from 10.77.0.2\n" {
		t.Errorf("the host hears %q", said)
	}
	n.must("stop", "a", "--now")
	within(t, "interfaces are left on the bridge", func() bool {
		out, err := exec.Command("ip", "-n", n.ns, "-o", "link", "show", "master", "br0").CombinedOutput()
		return err == nil && len(out) == 0
	})
	n.must("rm", "a")
	waitNothing(t, n.work)
}

// TestTap: an interface that was made before is used, and stays.
func TestTap(t *testing.T) {
	t.Parallel()
	n := newNetHost(t)
	for _, args := range [][]string{
		{"-n", n.ns, "tuntap", "add", "tap0", "mode", "tap"},
		{"-n", n.ns, "link", "set", "tap0", "master", "br0", "up"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Skipf("ip %v: %v: %s", args, err, out)
		}
	}
	n.start(
		"a",
		qemus.Newest(t),
		"mode = \"tap\"\ninterface = \"tap0\"",
		"vmlatch.net=10.77.0.2/24 vmlatch.serve=5000",
	)
	if said := n.asks("10.77.0.2:5000"); said != "hello from 10.77.0.2\n" {
		t.Errorf("the host hears %q", said)
	}
	n.write("b.toml", "[[network]]\nmode = \"tap\"\ninterface = \"tap0\"\n")
	if out, err := n.inside("start", "b.toml"); err == nil || !strings.Contains(out, "tap tap0: ") {
		t.Errorf("a second VM on the interface: %v: %s", err, out)
	}
	n.write("looked.toml", read(t, filepath.Join(n.work, "a.toml"))+"[firmware]\ntype = \"uefi\"\n[tpm]\n")
	n.must("plan", "looked.toml", "--tables", "tables.json") // also while it runs
	n.must("stop", "a", "--now")
	if out, err := exec.Command("ip", "-n", n.ns, "link", "show", "tap0").CombinedOutput(); err != nil {
		t.Errorf("the interface is gone: %s", out)
	}
	n.must("start", "b.toml") // at once
	n.must("stop", "b", "--now")
	n.must("rm", "a", "b")
	waitNothing(t, n.work)
}

// TestRestrictedNetwork: what reaches nothing reaches not even the host's loopback, which QEMU's
// own network shows else.
func TestRestrictedNetwork(t *testing.T) {
	t.Parallel()
	n := newNetHost(t)
	n.serves("127.0.0.1:7001")
	const words = "vmlatch.net=10.0.2.15/24 vmlatch.gateway=10.0.2.2 vmlatch.serve=5000 vmlatch.connect=10.0.2.2:7001"
	n.start("open", qemus.Newest(t), "mode = \"user\"", words)
	n.start("shut", qemus.Newest(t), "restrict = true\nforward = [\"tcp:127.0.0.1:2223:5000\"]", words)
	n.console("open", "10.0.2.2:7001 says hello from the host")
	n.console("shut", "10.0.2.2:7001 says nothing")
	if said := n.asks("127.0.0.1:2223"); said != "hello from 10.0.2.15\n" {
		t.Errorf("its forwarded port says %q", said)
	}
	n.shows("inspect", n.must("inspect", "shut"), "user, reaches nothing")
	n.must("stop", "--all", "--now")
	n.must("rm", "--all")
	waitNothing(t, n.work)
}

// TestLink: two VMs are connected by a wire of their own, without any right, whichever starts
// first.
func TestLink(t *testing.T) {
	t.Parallel()
	n := newNetHost(t)
	qemu := qemus.Newest(t)
	n.start("b", qemu, "mode = \"link\"\nconnect = \"a\"", "vmlatch.net=10.9.0.2/24 vmlatch.connect=10.9.0.1:5000")
	n.start("a", qemu, "mode = \"link\"\nlisten = true", "vmlatch.net=10.9.0.1/24 vmlatch.serve=5000")
	n.console("b", "10.9.0.1:5000 says hello from 10.9.0.1")
	n.shows("inspect", n.must("inspect", "b"), "link a, MAC 52:")
	n.must("stop", "--all", "--now")
	n.must("rm", "--all")
	waitNothing(t, n.work)

	// Peers wait for each other in no order, and one that starts again is reached again.
	n.start("d", qemu, "mode = \"link\"\npeer = \"c\"", "vmlatch.net=10.9.0.1/24 vmlatch.serve=5000")
	n.start("c", qemu, "mode = \"link\"\npeer = \"d\"", "vmlatch.net=10.9.0.2/24 vmlatch.connect=10.9.0.1:5000")
	n.console("c", "10.9.0.1:5000 says hello from 10.9.0.1")
	n.shows("inspect", n.must("inspect", "c"), "link d, MAC 52:")
	n.must("stop", "c", "--now")
	n.start("c", qemu, "mode = \"link\"\npeer = \"d\"", "vmlatch.net=10.9.0.2/24 vmlatch.connect=10.9.0.1:5000")
	n.console("c", "10.9.0.1:5000 says hello from 10.9.0.1")
	n.must("stop", "--all", "--now")
	n.must("rm", "--all")
	waitNothing(t, n.work)
}

// TestSSH: the way to a guest's ssh is the one that its spec has.
func TestSSH(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.write("vm.toml", "[[network]]\nforward = [\"udp:127.0.0.1:2229:22\", \"tcp:127.0.0.1:2229:22\"]\n")
	h.run("vmlatch", "start", "--hold", "vm.toml")
	h.shows("ssh", h.run("vmlatch", "ssh", "--print", "root@vm", "--", "-i", "key", "uptime"),
		"ssh -l root -o HostKeyAlias=vm.vmlatch -p 2229 127.0.0.1 -i key uptime")
	h.shows("ps", h.run("vmlatch", "ps", "--wide"), "user 127.0.0.1:2229:22")
	h.write("none.toml", "")
	h.run("vmlatch", "start", "--hold", "none.toml")
	for name, want := range map[string]string{"none": "no way leads to its port 22", "gone": "no such VM"} {
		if out, err := h.attempt(h.command("vmlatch", "ssh", name)); err == nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v: %s, want %q", name, err, out, want)
		}
	}
	h.run("vmlatch", "stop", "--all", "--now")
	h.run("vmlatch", "rm", "--all")
	waitNothing(t, h.work)
}
