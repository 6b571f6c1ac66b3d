package launcher

import (
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/internal/tuntap"
	"github.com/vmlatch/vmlatch/launcher/plan"
)

// networkFacts looks for what carries a guest's networks; confidential is whether it may be one.
func networkFacts(g *plan.Guest, root host.Root, confidential bool, f *plan.Facts) (err error) {
	if len(g.Networks) == 0 && !g.VSock.On() && !g.Config.On() {
		return nil
	}
	f.MachineID, f.VHostNet = root.MachineID(), tuntap.HasVHost()
	f.Addresses = map[string]net.HardwareAddr{}
	for _, n := range g.Networks {
		if mac := tuntap.Address(n.Interface); mac != nil {
			f.Addresses[n.Interface] = mac
		}
		if n.Mode == "bridge" && !tuntap.MayMake() {
			f.BridgeHelper = tuntap.Helper(f.QEMU)
		}
	}
	if !g.Networks.MayHavePasst(confidential) {
		return nil
	}
	if f.Passt, err = exec.LookPath("passt"); err != nil && g.Networks.Passt() {
		return plan.NoPasst()
	}
	f.NameServers, f.NoNames = nameServers("/")
	return nil
}

// nameServers are what a guest asks for names, where the host's own server listens on its loopback,
// which guests do not reach: then that server's own (systemd-resolved.service(8)). root is the
// directory of the host's files.
func nameServers(root string) (instead []netip.Addr, none string) {
	const own = "etc/resolv.conf"
	behind := readServers(filepath.Join(root, "run/systemd/resolve/resolv.conf"))
	switch {
	case len(readServers(filepath.Join(root, own))) > 0:
		return nil, ""
	case len(behind) > 0:
		return behind, ""
	default:
		return nil, "/" + own + " names no server besides this host's loopback"
	}
}

// readServers are the servers that a file names (resolv.conf(5)), but for those on a loopback.
func readServers(file string) (servers []netip.Addr) {
	b, err := regular.Read(file, 1<<16)
	if err != nil {
		return nil
	}
	const most = 3 // of a family: resolvers ask no more (resolv.conf(5), MAXNS), and passt takes no more
	families := map[bool]int{}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			if a, err := netip.ParseAddr(f[1]); err == nil && !a.IsLoopback() && a.Zone() == "" &&
				families[a.Is4()] < most && !slices.Contains(servers, a) {
				servers, families[a.Is4()] = append(servers, a), families[a.Is4()]+1
			}
		}
	}
	return servers
}
