package plan_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
	"github.com/vmlatch/vmlatch/launcher/plan"
)

// TestDefaultNetwork: a spec that names no mode has the one of its technology.
func TestDefaultNetwork(t *testing.T) {
	for name, c := range map[string]struct{ spec, want string }{
		"plain":                    {"name = \"vm\"\n[[network]]\n", "user,"},
		"confidential":             {snpSpec + "\n[[network]]\n", "stream,"},
		"confidential, forwarded":  {snpSpec + "\n[[network]]\nforward = ['tcp::2222:22']", "stream,"},
		"confidential, by name":    {snpSpec + "\n[[network]]\nmode = 'user'", "user,"},
		"confidential, restricted": {snpSpec + "\n[[network]]\nrestrict = true", "user,"},
		"plain, with passt's key":  {"name = \"vm\"\n[[network]]\nhost-loopback = true", "stream,"},
	} {
		p := mustPlan(t, c.spec, testhost.Facts())
		if got := plan.ParseOptions(p.Argv).One("-netdev"); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
	without := testhost.Facts()
	without.Passt = ""
	if _, err := build(t, snpSpec+"\n[[network]]\n", without); !errors.Is(err, fault.ErrHost) {
		t.Errorf("without passt: %v, want the host to lack it", err)
	}
	mustPlan(t, "name = \"vm\"\n[[network]]\n", without)
}

// TestNameServers: passt tells the guest of the servers that it can reach, if the host's own is not
// one of them.
func TestNameServers(t *testing.T) {
	f := testhost.Facts()
	f.NameServers = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	argv := func(more string) []string {
		return mustPlan(t, "name = \"vm\"\n[[network]]\nmode = 'passt'\n"+more, f).Helpers[0].Argv
	}
	want := []string{"--no-map-gw", "--dns", "192.0.2.1", "--dns", "2001:db8::1"}
	if got := argv(""); !slices.Equal(got[len(got)-len(want):], want) {
		t.Errorf("%q, want %q at its end", got, want)
	}
	if got := argv("host-loopback = true"); slices.Contains(got, "--dns") {
		t.Errorf("%q: it reaches the host's own server", got)
	}
}
