//go:build inhost

package inhost

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/integration/asked"
)

// TestKernelsNetworks: a guest reaches its host by interfaces whose frames the kernel carries
// (vhost), on a bridge and on a macvtap.
func TestKernelsNetworks(t *testing.T) {
	sh(t, `ip link add br0 type bridge && ip addr add 10.77.0.1/24 dev br0 && ip link set br0 up
		ip link add veth0 type veth peer name veth1 && ip addr add 10.78.0.1/24 dev veth1
		ip link set veth0 up && ip link set veth1 up
		ip link add link veth0 name mv0 type macvtap mode bridge && ip link set mv0 up`)
	l, err := net.Listen("tcp4", ":8000")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	log := &asked.Log{}
	go log.Serve(l)
	var words []string
	for i, network := range []string{"10.77.0", "10.78.0"} {
		words = append(words, fmt.Sprintf("ifopen net%[1]d && set net%[1]d/ip %[2]s.2 && "+
			"set net%[1]d/netmask 255.255.255.0 && imgfetch http://%[2]s.1:8000/net%[1]d && ifclose net%[1]d", i, network))
	}
	v := newVM(t, fmt.Sprintf(`[kernel]
image = %q
cmdline = %q
[[network]]
mode = "bridge"
bridge = "br0"
vhost = "on"
[[network]]
mode = "macvtap"
interface = "mv0"
vhost = "on"
`, os.Getenv("INHOST_IPXE"), strings.Join(words, " && ")))
	v.start()
	want := []string{"10.77.0.2 /net0", "10.78.0.2 /net1"}
	for end := time.Now().Add(3 * time.Minute); !slices.Equal(log.All(), want); time.Sleep(time.Second) {
		if time.Now().After(end) {
			t.Fatalf("the guest asked for %q, want %q", log.All(), want)
		}
	}
	if out := sh(t, `cat /proc/[0-9]*/task/*/comm | grep -c '^vhost-' || true`); out != "2" {
		t.Errorf("%s threads carry frames, want 2", out)
	}
	if out := v.run("ps", "--wide"); !strings.Contains(out, "bridge br0") || !strings.Contains(out, "macvtap mv0") {
		t.Errorf("ps --wide: %s", out)
	}
	v.run("stop", "--now", "vm")
	for range 100 {
		if sh(t, `ip -o link show master br0`) == "" {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Error("an interface is left on the bridge")
}

// TestVSock: a guest has an address for sockets of its own, which no other VM gets.
func TestVSock(t *testing.T) {
	v := newVM(t, "[vsock]\n")
	v.start()
	var is struct{ Record struct{ VSock uint32 } }
	if err := json.Unmarshal([]byte(v.run("inspect", "--json", "vm")), &is); err != nil {
		t.Fatal(err)
	}
	cid := is.Record.VSock
	if err := connect(t, cid); errors.Is(err, unix.ENODEV) {
		t.Errorf("address %d: the kernel does not know it", cid)
	}
	if err := connect(t, cid+1); !errors.Is(err, unix.ENODEV) {
		t.Errorf("address %d, which no VM has: %v", cid+1, err)
	}
	v.write("vm.toml", fmt.Sprintf("qemu = %q\naccel = \"tcg\"\nvsock.cid = %d\n", os.Getenv("INHOST_QEMU"), cid))
	if out, err := v.try("start", "vm.toml", "--name", "other"); err == nil || !strings.Contains(out, fmt.Sprint(cid)) {
		t.Errorf("another VM with its address: %v: %s", err, out)
	}
}

// connect asks a guest for a connection, which none listens for.
func connect(t *testing.T, cid uint32) error {
	t.Helper()
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrVM{CID: cid, Port: 22})
}
