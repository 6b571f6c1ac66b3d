package plan_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/launcher/confine"
	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
	"github.com/vmlatch/vmlatch/launcher/plan"
)

// TestBoxes: a box has what its guest needs, and no more.
func TestBoxes(t *testing.T) {
	own := func(f *plan.Facts) {
		testhost.Confined(f)
		f.Confine.Users = &confine.Users{First: 200000, Count: 10}
	}
	const named = "name = \"vm\"\n"
	const snp = `
		name = "vm"
		[firmware]
		image = "OVMF.amdsev.fd"
		[confidential]
		technology = "sev-snp"
		[latch]
		until = "nothing"
		`
	for name, c := range map[string]struct {
		spec         string
		networked    bool
		reaches, not string // a path
		missing      string // a part of what it could do
		root         bool   // it has no user of its own
	}{
		"plain": {named, false, "/proc", "/etc/resolv.conf", "", false},
		"slirp": {
			named + "[[network]]\nmode = \"user\"", true, "/etc/resolv.conf", "/etc/passwd", "loopback", false,
		},
		"9p": {
			named + "[[share]]\nmode = \"9p\"\npath = \"/srv\"\ntag = \"a\"", false, "/srv/x", "/etc", "9p", true,
		},
		"its own": {
			named + "[[device]]\ndriver = \"usb-host\"", false, "/dev/bus/usb/1", "/dev/sda", "devices", true,
		},
		"a label": {
			named + "[[device]]\ndriver = \"nvme\"\nserial = \"/etc\"", false, "/proc", "/etc", "", false,
		},
		"the root of all": {
			named + "[[object]]\nqom-type = \"rng-random\"\nid = \"r\"\nfilename = \"/\"",
			false, "/proc", "/etc", "", false,
		},
		"link": {
			named + "[[network]]\nmode = \"link\"\nconnect = \"b\"",
			false, "/run/vmlatch/.links/b/link.sock", "/run/vmlatch/.links/c", "socket", true,
		},
		"tcp broker": {
			snp + "[broker]\nconnect = \"tcp:broker.example:7000\"",
			true, "/etc/resolv.conf", "/run", "broker", false,
		},
		"unix broker": {
			snp + "[broker]\nconnect = \"unix:/run/broker/sock\"",
			false, "/run/broker/sock", "/run/other", "socket", true,
		},
		"in /run": {
			snp + "[broker]\nconnect = \"unix:/run/sock\"", false, "/run/sock", "/run/other", "sockets", true,
		},
		"next to the VMs": {
			snp + "[broker]\nconnect = \"unix:/run/vmlatch/../sock\"",
			false, "/run/sock", "/run/vmlatch/vm/record.json", "sockets", true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := build(t, c.spec, testhost.Facts(own))
			if err != nil {
				t.Fatal(err)
			}
			b := p.Confinement
			if b == nil {
				t.Fatalf("it is not confined: %s", p.Unconfined)
			}
			if b.Networked != c.networked || b.Has(confine.Network) == c.networked {
				t.Errorf("networked %t, namespaces %v", b.Networked, b.Namespaces)
			}
			if !b.Reaches(c.reaches) || b.Reaches(c.not) {
				t.Errorf("it reaches %s: %t, and %s: %t", c.reaches, b.Reaches(c.reaches), c.not, b.Reaches(c.not))
			}
			said := slices.ContainsFunc(b.Missing, func(m string) bool { return strings.Contains(m, c.missing) })
			if said != (c.missing != "") {
				t.Errorf("missing %q", b.Missing)
			}
			if (b.Users == nil) != c.root {
				t.Errorf("a user of its own: %v", b.Users)
			}
		})
	}
}
