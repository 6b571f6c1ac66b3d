package plan

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/internal/argv"
	"github.com/vmlatch/vmlatch/launcher/internal/tuntap"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// Network is a table [[network]]: one virtio network interface.
type Network struct {
	Mode      string   `toml:"mode"`    // one of networkModes
	Forward   []string `toml:"forward"` // tcp:127.0.0.1:2222:22; user and passt
	MAC       string   `toml:"mac"`     // "" for one that follows from host and name
	Restrict  bool     `toml:"restrict"`
	Loopback  bool     `toml:"host-loopback"` // passt: the guest may reach the host's own loopback
	Bridge    string   `toml:"bridge"`
	Interface string   `toml:"interface"` // tap and macvtap
	Listen    bool     `toml:"listen"`    // link: the other VM connects
	Connect   string   `toml:"connect"`   // link: the name of the VM that listens
	Peer      string   `toml:"peer"`      // link: the name of the other VM, which names this one
	VHost     string   `toml:"vhost"`     // auto, on, off: the kernel carries the frames; bridge, tap and macvtap
	unset     bool     // the spec leaves the mode to the technology
}

// Networks are a guest's network interfaces, in order.
type Networks []Network

// networkMode is what mode may be, and how it makes the value of -netdev.
type networkMode struct {
	name   string
	netdev func(b *Builder, n *Network, id string) (*argv.Option, error)
	keys   []string // that it takes, besides mode and mac
}

// Modes of networks.
const (
	netUser    = "user"
	netPasst   = "passt"
	netBridge  = "bridge"
	netTap     = "tap"
	netMacvtap = "macvtap"
	netLink    = "link"
)

// networkModes are all of them. The default of plain VMs is user, which every QEMU has, and that of
// confidential guests passt, which keeps them off the host's loopback: a spec means the same on
// every host.
var networkModes = []networkMode{
	{netUser, userNet, []string{"forward", "restrict"}},
	{netPasst, passtNet, []string{"forward", "host-loopback"}},
	{netBridge, bridgeNet, []string{"bridge", "vhost"}},
	{netTap, tapNet, []string{"interface", "vhost"}},
	{netMacvtap, macvtapNet, []string{"interface", "vhost"}},
	{netLink, linkNet, []string{"listen", "connect", "peer"}},
}

func (all *Networks) complete(g *Guest) error {
	forwarded, taken := map[string]bool{}, map[[2]string]bool{}
	for i := range *all {
		n := &(*all)[i]
		switch {
		case n.Mode == "" && n.Loopback:
			n.Mode = netPasst
		case n.Mode == "":
			n.Mode, n.unset = netUser, !n.Restrict
		}
		var names []string
		for _, m := range networkModes {
			names = append(names, m.name)
		}
		if err := OneOf(g.File, networkKey(i)+".mode", n.Mode, names...); err != nil {
			return err
		}
		if err := checkMAC(n.MAC); err != nil {
			return g.File.Errorf(networkKey(i)+".mac", "%v", err)
		}
		if err := n.completeMode(g, networkKey(i)); err != nil {
			return err
		}
		for _, x := range [][2]string{{".interface", n.Interface}, {".peer", n.Peer}} {
			if x[1] != "" && taken[x] {
				return g.File.Errorf(networkKey(i)+x[0], "%q: another network has it", x[1])
			}
			taken[x] = true
		}
		for _, f := range n.Forward {
			p := strings.Split(f, ":")
			host := strings.Join(p[:min(3, len(p))], ":")
			if forwarded[host] {
				return g.File.Errorf(networkKey(i)+".forward", "forward %q: %s is forwarded already", f, host)
			}
			forwarded[host] = true
		}
	}
	return nil
}

// completeMode refuses keys of other modes.
func (n *Network) completeMode(g *Guest, key string) error {
	for k, given := range map[string]bool{
		"forward": n.Forward != nil, "restrict": n.Restrict, "host-loopback": n.Loopback, "bridge": n.Bridge != "",
		"interface": n.Interface != "", "vhost": n.VHost != "", "listen": n.Listen, "connect": n.Connect != "",
		"peer": n.Peer != "",
	} {
		if given && !slices.Contains(n.mode().keys, k) {
			return g.File.Errorf(key+"."+k, "is not for mode = %q", n.Mode)
		}
	}
	if n.VHost == "" {
		n.VHost = vhostAuto
	}
	if err := OneOf(g.File, key+".vhost", n.VHost, vhostAuto, "on", "off"); err != nil {
		return err
	}
	name, what := n.Interface, "interface"
	switch n.Mode {
	case netUser, netPasst:
		return nil
	case netLink:
		return n.completeLink(g, key)
	case netBridge:
		name, what = n.Bridge, "bridge"
	}
	if !tuntap.IsName(name) {
		return g.File.Errorf(key+"."+what, "%q: must be the name of an interface of this host", name)
	}
	return nil
}

// checkMAC refuses what is not the address of one network interface.
func checkMAC(text string) error {
	if text == "" {
		return nil
	}
	mac, err := net.ParseMAC(text)
	switch {
	case err != nil || len(mac) != 6 || strings.ContainsAny(text, ".-"):
		return fmt.Errorf(`mac %q: must be six bytes, such as "52:54:00:12:34:56"`, text)
	case mac[0]&1 != 0:
		return fmt.Errorf("mac %q: is an address of a group (bit 0 of its first byte)", text)
	}
	return nil
}

func networkKey(i int) string { return fmt.Sprintf("network %d", i+1) }

// completeLink checks a network between two VMs: one listens and the other connects, or each names
// the other.
func (n *Network) completeLink(g *Guest, key string) error {
	given := 0
	for _, is := range []bool{n.Listen, n.Connect != "", n.Peer != ""} {
		if is {
			given++
		}
	}
	if given != 1 {
		return g.File.Errorf(key, `a link needs listen = true, connect = "NAME" of the VM that listens,`+
			` or peer = "NAME" of one whose peer this is`)
	}
	if n.Listen {
		if n != g.firstListener() {
			return g.File.Errorf(key+".listen", "a VM listens for one link alone: let it connect for others")
		}
		return nil
	}
	if n.Peer != "" {
		key += ".peer"
	} else {
		key += ".connect"
	}
	if err := rundir.CheckName(n.Other()); err != nil {
		return g.File.Errorf(key, "%v", err)
	}
	if n.Other() == g.Name {
		return g.File.Errorf(key, "%q: is this VM itself", n.Other())
	}
	return nil
}

// Other is the VM at the other end of a link, where this end names it; "" if it does not.
func (n *Network) Other() string { return cmp.Or(n.Connect, n.Peer) }

// firstListener is the first network that listens.
func (g *Guest) firstListener() *Network {
	for i := range g.Networks {
		if g.Networks[i].Listen {
			return &g.Networks[i]
		}
	}
	return nil
}

// Linked reports whether a guest connects to other VMs.
func (all Networks) Linked() bool {
	return slices.ContainsFunc(all, func(n Network) bool { return n.Other() != "" })
}

// MayHavePasst reports whether a guest, which may be a confidential one, has a network by passt.
func (all Networks) MayHavePasst(confidential bool) bool {
	return slices.ContainsFunc(all, func(n Network) bool { return n.Mode == netPasst || confidential && n.unset })
}

// settle chooses modes that the spec leaves to the technology.
func (all Networks) settle(b *Builder) Networks {
	all = slices.Clone(all)
	for i := range all {
		if n := &all[i]; n.unset {
			from := "default of plain VMs"
			if b.Traits.Confidential {
				n.Mode, from = netPasst, "default of confidential guests: it keeps them off the host's loopback"
			}
			b.Choose(networkKey(i), n.Mode, from)
		}
	}
	return all
}

// OnLoopback reports whether a guest reaches what listens on the host's loopback.
func (all Networks) OnLoopback() bool {
	return slices.ContainsFunc(all, func(n Network) bool { return n.Mode == netUser && !n.Restrict || n.Loopback })
}

// Passt reports whether a network is carried by passt.
func (all Networks) Passt() bool {
	return slices.ContainsFunc(all, func(n Network) bool { return n.Mode == netPasst })
}

func (n *Network) mode() *networkMode {
	for i := range networkModes {
		if networkModes[i].name == n.Mode {
			return &networkModes[i]
		}
	}
	return nil
}

// Address is an interface's MAC: the one of the spec, or one that stays the same for this host,
// name and place. The second bit of its first byte says that no vendor has sold it.
func (g *Guest) Address(f *Facts, i int) net.HardwareAddr {
	if mac, err := net.ParseMAC(g.Networks[i].MAC); err == nil {
		return mac
	}
	if own := f.Addresses[g.Networks[i].Interface]; own != nil && g.Networks[i].Mode == netMacvtap {
		return own
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "vmlatch mac v1\x00%s\x00%s\x00%d", f.MachineID, g.Name, i))
	return append(net.HardwareAddr{0x52}, sum[:5]...)
}

func (all *Networks) build(b *Builder) error {
	for i, n := range *all {
		id := b.ids.New("net")
		n.MAC = b.Guest.Address(b.Facts, i).String()
		netdev, err := n.mode().netdev(b, &n, id)
		if errors.Is(err, fault.ErrHost) {
			return err
		}
		if err != nil {
			return b.Guest.File.Errorf(networkKey(i), "%v", err)
		}
		// romfile= : an option ROM would be code that was not measured.
		b.Option("-netdev", netdev.String(), "-device", argv.New("virtio-net-pci").Set("netdev", id).
			Set("id", "dev-"+id).Set("romfile", "").Set("mac", n.MAC).String())
	}
	return nil
}

// userNet is QEMU's own network stack, in its process.
func userNet(_ *Builder, n *Network, id string) (*argv.Option, error) {
	netdev := argv.New("user").Set("id", id)
	if n.Restrict {
		netdev.SetBool("restrict", true)
	}
	for _, f := range n.Forward {
		r, err := parseForward(f)
		if err != nil {
			return nil, err
		}
		netdev.Set("hostfwd", fmt.Sprintf("%s:%s:%s-:%s", r.protocol, r.address, r.port, r.guest))
	}
	return netdev, nil
}

// forward is a port of the host that leads to one of the guest.
type forward struct{ protocol, address, port, guest string }

// parseForward reads tcp:127.0.0.1:2222:22.
func parseForward(s string) (f forward, err error) {
	p := strings.Split(s, ":")
	if len(p) != 4 || p[0] != "tcp" && p[0] != "udp" {
		return f, fmt.Errorf("forward %q: must be tcp:ADDRESS:PORT:GUESTPORT or udp:…", s)
	}
	if a, err := netip.ParseAddr(p[1]); p[1] != "" && (err != nil || !a.Is4()) {
		return f, fmt.Errorf("forward %q: %q is not an IPv4 address of this host, such as 127.0.0.1", s, p[1])
	}
	for _, port := range p[2:] {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return f, fmt.Errorf("forward %q: %q is not a port", s, port)
		}
	}
	return forward{p[0], p[1], p[2], p[3]}, nil
}
