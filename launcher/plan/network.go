package plan

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/launcher/internal/argv"
)

// Network is a table [[network]]: one virtio network interface.
type Network struct {
	Mode    string   `toml:"mode"`    // one of networkModes
	Forward []string `toml:"forward"` // tcp:127.0.0.1:2222:22
	MAC     string   `toml:"mac"`
}

// Networks are a guest's network interfaces, in order.
type Networks []Network

// networkModes are what mode may be, and how each makes the value of -netdev.
var networkModes = []struct {
	name   string
	netdev func(b *Builder, n *Network, id string) (*argv.Option, error)
}{
	{"user", userNet},
}

func (all *Networks) complete(g *Guest) error {
	forwarded := map[string]bool{}
	for i := range *all {
		n := &(*all)[i]
		if n.Mode == "" {
			n.Mode = networkModes[0].name
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

func (n *Network) mode() func(*Builder, *Network, string) (*argv.Option, error) {
	for _, m := range networkModes {
		if m.name == n.Mode {
			return m.netdev
		}
	}
	return nil
}

func (all *Networks) build(b *Builder) error {
	for i, n := range *all {
		id := b.ids.New("net")
		netdev, err := n.mode()(b, &n, id)
		if err != nil {
			return b.Guest.File.Errorf(networkKey(i), "%v", err)
		}
		// romfile= : an option ROM would be code that was not measured.
		device := argv.New("virtio-net-pci").Set("netdev", id).Set("id", "dev-"+id).Set("romfile", "")
		if n.MAC != "" {
			device.Set("mac", n.MAC)
		}
		b.Option("-netdev", netdev.String(), "-device", device.String())
	}
	return nil
}

// userNet is QEMU's own network stack, in its process.
func userNet(_ *Builder, n *Network, id string) (*argv.Option, error) {
	netdev := argv.New("user").Set("id", id)
	for _, f := range n.Forward {
		rule, err := forwardRule(f)
		if err != nil {
			return nil, err
		}
		netdev.Set("hostfwd", rule)
	}
	return netdev, nil
}

// forwardRule turns tcp:127.0.0.1:2222:22 into QEMU's form.
func forwardRule(s string) (string, error) {
	p := strings.Split(s, ":")
	if len(p) != 4 || p[0] != "tcp" && p[0] != "udp" {
		return "", fmt.Errorf("forward %q: must be tcp:ADDRESS:PORT:GUESTPORT or udp:…", s)
	}
	if a, err := netip.ParseAddr(p[1]); p[1] != "" && (err != nil || !a.Is4()) {
		return "", fmt.Errorf("forward %q: %q is not an IPv4 address of this host, such as 127.0.0.1", s, p[1])
	}
	for _, port := range p[2:] {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return "", fmt.Errorf("forward %q: %q is not a port", s, port)
		}
	}
	return fmt.Sprintf("%s:%s:%s-:%s", p[0], p[1], p[2], p[3]), nil
}
