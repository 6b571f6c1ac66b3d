package plan

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/internal/argv"
	"github.com/vmlatch/vmlatch/launcher/internal/tuntap"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// vhostAuto lets the kernel carry the frames where this user may have it do so.
const vhostAuto = "auto"

// NoPasst is the error that means that a network needs passt, and the host lacks it.
func NoPasst() error {
	return &fault.Error{
		Kind: fault.Host, Op: "carry the guest's network", Err: errors.New("passt is missing"),
		Fix: `install it: the package passt; or write mode = "user"`,
	}
}

// passtNet is a program without rights that takes the guest's connections and makes them its own.
// It ends with QEMU, whose end of the socket pair it serves.
func passtNet(b *Builder, n *Network, id string) (*argv.Option, error) {
	if b.Facts.Passt == "" {
		return nil, NoPasst()
	}
	var ports []string
	for _, text := range n.Forward {
		f, err := parseForward(text)
		if err != nil {
			return nil, err
		}
		option, spec := "--tcp-ports", f.port+":"+f.guest
		if f.protocol == "udp" {
			option = "--udp-ports"
		}
		if f.address != "" {
			spec = f.address + "/" + spec
		}
		ports = append(ports, option, spec)
	}
	fd := b.Help(id, "passt, the guest's network", func(fd int) []string {
		args := []string{b.Facts.Passt, "--foreground", "--quiet", "--stderr", "--one-off", "--fd", strconv.Itoa(fd)}
		if !n.Loopback { // else the gateway's address leads to the host's loopback
			args = append(args, "--no-map-gw")
			for _, server := range b.Facts.NameServers {
				args = append(args, "--dns", server.String())
			}
		}
		return append(args, ports...)
	})
	return argv.New("stream").Set("id", id).SetBool("server", false).Set("addr.type", "fd").
		Set("addr.str", strconv.Itoa(fd)), nil
}

// bridgeNet is an interface on a bridge of the host's, which goes with QEMU.
func bridgeNet(b *Builder, n *Network, id string) (*argv.Option, error) {
	mac, err := net.ParseMAC(n.MAC)
	if err != nil {
		return nil, err
	}
	meaning := "an interface on the bridge " + n.Bridge
	helper := b.Facts.BridgeHelper
	if helper == "" {
		return tapDevice(b, n, id, meaning, func(*Opening) (*os.File, error) {
			return advised(tuntap.OnBridge(n.Bridge, mac))
		}), nil
	}
	return tapDevice(b, n, id, meaning+", made by "+helper, func(*Opening) (*os.File, error) {
		return advised(tuntap.ByHelper(helper, n.Bridge))
	}), nil
}

// tapNet is an interface that is there.
func tapNet(b *Builder, n *Network, id string) (*argv.Option, error) {
	return tapDevice(b, n, id, "the interface "+n.Interface, func(*Opening) (*os.File, error) {
		return advised(tuntap.Existing(n.Interface))
	}), nil
}

var errMACOfInterface = errors.New("mac: the guest must have the macvtap's address: leave mac out")

// macvtapNet is an interface on one of the host's own, with its address.
func macvtapNet(b *Builder, n *Network, id string) (*argv.Option, error) {
	if own := b.Facts.Addresses[n.Interface]; own != nil && n.MAC != own.String() {
		return nil, errMACOfInterface
	}
	return tapDevice(b, n, id, "the interface "+n.Interface, func(*Opening) (*os.File, error) {
		return advised(tuntap.Macvtap(n.Interface))
	}), nil
}

// linkNet is a wire to another VM of this user: a socket in the run directory of the one that
// listens. Either may start first, but that QEMU before 8.0 does not try again.
func linkNet(b *Builder, n *Network, id string) (*argv.Option, error) {
	if n.Peer != "" { // frames that the other end does not take are lost, as on a wire
		own, other := b.plan.Dirs.PeerSocket(b.Guest.Name, n.Peer), b.plan.Dirs.PeerSocket(n.Peer, b.Guest.Name)
		if len(own) > rundir.MaxSocketPath { // both have the same length
			return nil, fmt.Errorf("%s has %d bytes, and a socket's path at most %d: take shorter names, or --run-dir",
				own, len(own), rundir.MaxSocketPath)
		}
		return argv.New("dgram").Set("id", id).Set("local.type", "unix").Set("local.path", own).
			Set("remote.type", "unix").Set("remote.path", other), nil
	}
	o := argv.New("stream").Set("id", id).SetBool("server", n.Listen)
	if n.Listen {
		fd := b.Inherit(id, "a listening socket, for the VM at the other end", func(o *Opening) (*os.File, error) {
			path, err := o.Dir.MakeLink()
			if err != nil {
				return nil, err
			}
			return listen(path)
		})
		return o.Set("addr.type", "fd").Set("addr.str", strconv.Itoa(fd)), nil
	}
	o.Set("addr.type", "unix").Set("addr.path", b.plan.Dirs.LinkSocket(n.Connect))
	if b.Facts.Info != nil {
		switch major, _, _ := strings.Cut(b.Facts.Info.Version, "."); {
		case b.Facts.Info.HasSocket("reconnect-ms"): // came to both in 9.2
			o.SetInt("reconnect-ms", 1000)
		case len(major) > 1 || major >= "8":
			o.SetInt("reconnect", 1)
		}
	}
	return o, nil
}

func tapDevice(b *Builder, n *Network, id, meaning string, open Opener) *argv.Option {
	netdev := argv.New("tap").Set("id", id).SetInt("fd", b.Inherit(id, meaning, open))
	if n.VHost == "on" || n.VHost == vhostAuto && b.Facts.VHostNet {
		fd := b.Inherit(id+"-vhost", "the kernel's backend of network devices",
			func(*Opening) (*os.File, error) { return advised(tuntap.VHost()) })
		netdev.SetBool("vhost", true).SetInt("vhostfd", fd)
	}
	return netdev
}

// advised gives an error about what the host has for networks its hint.
func advised(f *os.File, err error) (*os.File, error) {
	if err == nil {
		return f, nil
	}
	e := &fault.Error{Kind: fault.Host, Err: err}
	switch {
	case errors.Is(err, tuntap.ErrNoBridge):
		e.Fix = "make it: ip link add NAME type bridge; ip link set NAME up"
	case errors.Is(err, tuntap.ErrNoInterface):
		e.Fix = "make it: ip tuntap add NAME mode tap user USER; or ip link add link DEVICE name NAME type macvtap"
	case errors.Is(err, tuntap.ErrDenied):
		e.Fix = "have root write a line \"allow BRIDGE\" into /etc/qemu/bridge.conf, and restart the VM"
	case errors.Is(err, tuntap.ErrRights):
		e.Fix = `have root make an interface once (ip tuntap add tap0 mode tap user USER), and write` +
			` mode = "tap"; have root let you use QEMU's helper (chmod u+s qemu-bridge-helper; "allow BRIDGE"` +
			` in /etc/qemu/bridge.conf); or write mode = "passt", which needs no rights`
	case errors.Is(err, unix.EINVAL):
		e.Fix = "an interface of several queues (multi_queue) cannot be used: make one without"
	case errors.Is(err, unix.EBUSY):
		e.Fix = "another VM uses it"
	case errors.Is(err, unix.EADDRINUSE):
		e.Fix = "another VM has this CID: give this one a different one, cid = N in [vsock]"
	case errors.Is(err, unix.ENOENT):
		e.Fix = `load the kernel's module (modprobe vhost_net, vhost_vsock); networks also work with vhost = "off"`
	}
	return nil, e
}
